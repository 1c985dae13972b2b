#ifndef DDL_SERVER_ENGINE_WARM_UP_H_
#define DDL_SERVER_ENGINE_WARM_UP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "model/model_runner.h"
#include "server/engine/block_manager.h"

namespace ddl {

struct WarmUpOptions {
  int32_t max_step_tokens = 0;
  int32_t max_running_sequences = 0;
  int32_t max_context_length = 0;
};

// Runs the largest steps that serving will bring, or so large ones: a prefill of max_step_tokens
// positions and a decode of max_running_sequences sequences, or as many as the cache holds. The
// blocks it uses are free again afterwards. Fails as the runner fails.
absl::Status WarmUp(const WarmUpOptions& options, ModelRunner& runner, BlockManager& blocks);

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_WARM_UP_H_
