#ifndef DDL_BENCH_WORKLOAD_H_
#define DDL_BENCH_WORKLOAD_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bench/token_lengths.h"
#include "ddl/v1/inference.pb.h"

namespace ddl::bench {

enum class RequestKind { kStream, kUnary, kEmbed };  // GenerateStream, Generate, Embed

// One request, whole before the clock starts.
struct PlannedRequest {
  RequestKind kind = RequestKind::kStream;
  ddl::v1::GenerateRequest generate;  // of kStream and kUnary
  ddl::v1::EmbedRequest embed;        // of kEmbed
};

struct WorkloadOptions {
  std::string model;        // as GenerateRequest.model
  uint32_t vocab_size = 0;  // prompts are token ids below it
  TokenLengths prompt_tokens;
  TokenLengths output_tokens;
  double unary_share = 0.0;  // [0, 1] of the completions
  double embed_share = 0.0;  // [0, 1] of all requests
  int32_t inputs_per_embed = 1;
  int32_t shared_prefix_tokens = 0;  // leading tokens that all prompts have in common
  float temperature = 0.0f;
  uint64_t seed = 0;
};

// Requests as a function of (seed, phase, index): the same whatever the order in which they are
// made, so that a run can be repeated. Token ids are random, so that no prompt is found in a
// prefix cache unless shared_prefix_tokens asks for it. Immutable; any thread may call.
class Workload {
 public:
  explicit Workload(WorkloadOptions options);

  PlannedRequest Make(uint64_t phase, uint64_t index) const;

 private:
  void AppendPrompt(std::mt19937_64& random, ddl::v1::Input* input) const;

  const WorkloadOptions options_;
  std::vector<uint32_t> shared_prefix_;
};

}  // namespace ddl::bench

#endif  // DDL_BENCH_WORKLOAD_H_
