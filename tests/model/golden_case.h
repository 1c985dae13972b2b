#ifndef DDL_TESTS_MODEL_GOLDEN_CASE_H_
#define DDL_TESTS_MODEL_GOLDEN_CASE_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/token.h"

namespace ddl {

// One prompt of a golden case and what the official code computed for it in float32.
struct GoldenPrompt {
  std::string name;  // e.g. "ccec_base/input_ids_short[1]"
  std::vector<TokenId> tokens;
  std::vector<float> logits;  // [tokens, vocab]
  std::vector<float> hidden;  // [tokens, d]
  // The state [tokens, d, dv] before the first layer, after its attention, after its MLP and after
  // the last layer; empty where the case does not hold it.
  std::vector<float> x_init, x_block0_attn, x_block0, x_last;
  std::vector<TokenId> greedy;            // the 12 tokens that follow
  std::vector<float> logits_accelerated;  // ccec_dvcausal only
};

struct GoldenCase {
  std::string name;
  std::filesystem::path folder;
  std::vector<GoldenPrompt> prompts;
};

// Every folder below tests/data/goldens, goldens-legacy and goldens-v2, by name.
//
// Where the official code is known to be wrong (one-token inputs of models with k/v shift, which
// it leaves unshifted), `oracle.safetensors` of the case replaces what it computed.
std::vector<GoldenCase> LoadGoldenCases();

}  // namespace ddl

#endif  // DDL_TESTS_MODEL_GOLDEN_CASE_H_
