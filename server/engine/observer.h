#ifndef DDL_SERVER_ENGINE_OBSERVER_H_
#define DDL_SERVER_ENGINE_OBSERVER_H_

#include <cstdint>
#include <string_view>

#include "absl/time/time.h"

namespace ddl {

enum class Task { kGenerate, kEmbed };

// Everything that happened in one step.
struct StepStats {
  int32_t prefill_tokens = 0;  // prompt and embed positions computed
  int32_t decode_tokens = 0;   // positions of sequences that had already generated
  int32_t sequences = 0;
  absl::Duration duration;            // the whole step
  absl::Duration scheduler_duration;  // of it, deciding what to run
};

// The engine's state after a step or a change of its queues.
struct EngineLoad {
  int32_t generate_running = 0;  // requests with at least one position computed
  int32_t generate_waiting = 0;
  int32_t embed_running = 0;
  int32_t embed_waiting = 0;
  int64_t waiting_tokens = 0;  // prompt tokens of waiting requests
  int32_t kv_blocks_free = 0;
  int32_t kv_blocks_used = 0;
};

struct FinishedRequest {
  Task task = Task::kGenerate;
  // "stop", "eos", "length", "context", "cancel", "deadline", "error"; "length" for a finished
  // embed is never used: it reports "stop".
  std::string_view finish_reason;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;  // delivered to the sink
  absl::Duration queue;
  absl::Duration prefill;
  absl::Duration decode;
  // From seeing the cancel or the deadline to having freed the blocks; zero otherwise.
  absl::Duration cancel_latency;
};

// Told of what happens in the engine, as it happens, on the step thread (OnRejected and OnLoad
// also on the submitting thread). Must be thread-safe and quick. The metrics implement it.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;

  virtual void OnStep(const StepStats& step) = 0;
  virtual void OnLoad(const EngineLoad& load) = 0;
  virtual void OnPromptTokens(Task task, int64_t computed) = 0;
  virtual void OnGeneratedTokens(int64_t tokens) = 0;
  // Generated tokens that no OK answer accounts for, or positions computed again.
  // reason: "cancel", "deadline", "error", "preempt_recompute".
  virtual void OnWastedTokens(std::string_view reason, int64_t tokens) = 0;
  virtual void OnTimeToFirstToken(absl::Duration duration) = 0;
  virtual void OnInterTokenLatency(absl::Duration duration) = 0;
  virtual void OnPreemption() = 0;
  virtual void OnNonfiniteLogits() = 0;
  // reason: "queue_full", "tokens_full", "too_large", "draining", "loading".
  virtual void OnRejected(std::string_view reason) = 0;
  virtual void OnFinished(const FinishedRequest& request) = 0;
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_OBSERVER_H_
