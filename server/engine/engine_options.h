#ifndef DDL_SERVER_ENGINE_ENGINE_OPTIONS_H_
#define DDL_SERVER_ENGINE_ENGINE_OPTIONS_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "model/token.h"

namespace ddl {

struct EngineOptions {
  // Completions in the batch, and as many inputs of Embed and Score. The runner should have
  // SlotsFor(max_running_sequences) slots, which keeps some for each kind; its slots bound it too.
  int32_t max_running_sequences = 64;
  // Requests admitted beyond those that could run at once, max_running_sequences.
  int32_t max_waiting_requests = 256;
  // Prompt tokens of requests that wait. A request that finds none waiting is admitted whatever
  // its size.
  int64_t max_waiting_tokens = 262144;
  // Positions computed per step: decodes first, prefill chunks fill the rest. At least
  // max_running_sequences.
  int32_t max_step_tokens = 512;
  int32_t max_context_length = 1024;  // tokens, prompt and completion together
  // Tokens that end a completion, each of them, unless it ignores them.
  std::vector<TokenId> eos_token_ids = {};
  // While completions are being decoded, a step takes so many prompt and input positions that it
  // lasts at most this many times a step of the decodes alone, by the durations measured.
  double max_decode_slowdown = 2.0;
  // A request that has waited this long rises one priority class, and again after as long.
  absl::Duration priority_aging = absl::Seconds(10);
  // A request whose sink stays full this long ends with RESOURCE_EXHAUSTED, SLOW_READER.
  absl::Duration slow_reader_timeout = absl::Seconds(30);
  bool prefix_cache = true;
  // How often a step's gates go to EngineObserver::OnGateSample; infinite: never.
  absl::Duration gate_sample_interval = absl::Seconds(1);
  // Called on the step thread with the runner's status once its device is lost: no later step can
  // succeed. The engine fails the requests of each and goes on until Stop. Null: no call.
  std::function<void(const absl::Status&)> on_device_lost = nullptr;
  // Called on the step thread when all sinks have been given what there was for them, before what
  // comes next is computed. Null: no call.
  std::function<void()> on_delivered = nullptr;
};

// INVALID_ARGUMENT for options that cannot work together, or with a model of `max_sequences` slots.
absl::Status CheckOptions(const EngineOptions& options, int32_t max_sequences);

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_ENGINE_OPTIONS_H_
