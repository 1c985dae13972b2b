#ifndef DDL_SERVER_ENGINE_OBSERVER_H_
#define DDL_SERVER_ENGINE_OBSERVER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/time/time.h"
#include "absl/types/span.h"

namespace ddl {

enum class Task { kGenerate, kEmbed, kScore };
inline constexpr int kNumTasks = 3;

enum class PromptSource { kComputed, kCached };

// Why a request ended. A finished embed or score: kStop; a Generate of several completions: as the
// first. kDeadline: its queue_timeout too. kError: a stopping server too.
enum class EndReason { kStop, kEos, kLength, kContext, kCancel, kDeadline, kError, kSlowReader };
// Generated tokens that no OK answer accounts for (kError: a slow reader's too), or positions
// computed again.
enum class WasteReason { kCancel, kDeadline, kError, kPreemptRecompute };
// Why a request was refused: by the engine, or (the last two) before it came to one.
enum class RejectReason {
  kQueueFull,
  kTokensFull,
  kTooLarge,
  kDraining,
  kDeadlineInfeasible,
  kLoading,
  kRateLimited,
};
// Their names, as labels of metrics have them: "stop", "preempt_recompute", "queue_full".
std::string_view ToString(EndReason reason);
std::string_view ToString(WasteReason reason);
std::string_view ToString(RejectReason reason);

// Everything that happened in one step.
struct StepStats {
  int32_t prefill_tokens = 0;  // prompt and embed positions, and those computed again
  int32_t decode_tokens = 0;   // positions of the token sampled last
  int32_t sequences = 0;
  // From its beginning, or from the end of the step before where it was begun by then, to its end.
  absl::Duration duration;
  absl::Duration scheduler_duration;  // of it, deciding what to run
  absl::Duration model_duration;      // of it, in the runner: computing, or launching and waiting
};

// The engine's state after a step or a change of its queues.
struct TaskLoad {
  int32_t running = 0;  // requests with at least one position computed
  int32_t waiting = 0;
};

struct EngineLoad {
  std::array<TaskLoad, kNumTasks> tasks;  // by Task
  int64_t waiting_tokens = 0;             // prompt tokens of waiting requests
  int32_t paused_slow_reader = 0;         // sequences whose client does not read
  int32_t paused_preempted = 0;           // sequences that have to be computed again
  int32_t kv_blocks_free = 0;             // holding nothing
  int32_t kv_blocks_used = 0;             // held by sequences
  int32_t kv_blocks_cached = 0;           // held by none, in the prefix cache
  // How long the last in the queue will wait to start, at the rate of the recent past.
  absl::Duration queue_delay;

  TaskLoad& of(Task task) { return tasks[static_cast<size_t>(task)]; }
  const TaskLoad& of(Task task) const { return tasks[static_cast<size_t>(task)]; }
  int32_t running() const {
    return of(Task::kGenerate).running + of(Task::kEmbed).running + of(Task::kScore).running;
  }
  int32_t waiting() const {
    return of(Task::kGenerate).waiting + of(Task::kEmbed).waiting + of(Task::kScore).waiting;
  }
};

// What the gates of one sublayer did in a sampled step.
struct GateSample {
  int32_t layer = 0;
  bool mlp = false;                      // else attention
  absl::Span<const float> beta;          // [positions]
  absl::Span<const float> update_ratio;  // [positions]
};

struct FinishedRequest {
  Task task = Task::kGenerate;
  EndReason reason = EndReason::kStop;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  absl::Duration queue;
  absl::Duration prefill;
  absl::Duration decode;
  // From the Cancel call or the deadline to having freed the blocks; zero otherwise.
  absl::Duration cancel_latency;
};

// Called as things happen in the engine, on the step thread (OnRejected and OnLoad also on the
// submitting thread), and of a request's end before its sink is. Must be thread-safe and quick, and
// must not call the engine, whose lock may be held. The metrics implement it.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;

  virtual void OnStep(const StepStats& step) = 0;
  virtual void OnLoad(const EngineLoad& load) = 0;
  // Prompt positions computed for the first time, or found in the prefix cache.
  virtual void OnPromptTokens(Task task, PromptSource source, int64_t tokens) = 0;
  // A sequence was looked up in the prefix cache when it started.
  virtual void OnPrefixCacheQuery(int64_t query_tokens, int64_t hit_tokens) = 0;
  // A request was paused because its client does not read.
  virtual void OnStreamStall() = 0;
  virtual void OnGateSample(const GateSample& sample) = 0;
  // Tokens sampled. Their sum is that of the completion_tokens of requests that ended OK, and of
  // the tokens wasted by kCancel, kDeadline and kError.
  virtual void OnGeneratedTokens(int64_t tokens) = 0;
  virtual void OnWastedTokens(WasteReason reason, int64_t tokens) = 0;
  virtual void OnTimeToFirstToken(absl::Duration duration) = 0;   // once per completion
  virtual void OnInterTokenLatency(absl::Duration duration) = 0;  // once per further token
  virtual void OnPreemption() = 0;
  virtual void OnNonfiniteLogits() = 0;
  virtual void OnRejected(RejectReason reason) = 0;
  virtual void OnFinished(const FinishedRequest& request) = 0;
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_OBSERVER_H_
