#ifndef DDL_SERVER_MODELS_MODEL_LOADER_H_
#define DDL_SERVER_MODELS_MODEL_LOADER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/model_runner.h"
#include "model/tokenizer/eos_tokens.h"
#include "model/tokenizer/tokenizer.h"
#include "server/config.h"

namespace ddl {

// A checkpoint, ready for an engine.
struct LoadedModel {
  std::unique_ptr<ModelRunner> runner;
  std::string variant;                         // "gpt", "ccec" ...
  std::shared_ptr<const Tokenizer> tokenizer;  // null: token ids only
  EosTokens eos_tokens;
  int32_t max_context_length = 0;           // tokens
  std::future<std::string> weights_sha256;  // being computed
  int64_t weight_bytes = 0;                 // as computed with, not as stored
  int64_t kv_bytes = 0;                     // K/V cache
  absl::Duration read;                      // opening the checkpoint and tokenizer
  absl::Duration pack;                      // making the runner
};

// Loads one model. The status of a failure names the file and what is wrong with it. Returns
// early, with CANCELLED, once `abandoned` is true.
using ModelLoader = std::function<absl::StatusOr<LoadedModel>(
    const ModelSource& source, const ServerConfig& config, const std::atomic<bool>& abandoned)>;

// The loader of real checkpoints. Logs what it chose and what is odd.
absl::StatusOr<LoadedModel> LoadModel(const ModelSource& source, const ServerConfig& config,
                                      const std::atomic<bool>& abandoned);

}  // namespace ddl

#endif  // DDL_SERVER_MODELS_MODEL_LOADER_H_
