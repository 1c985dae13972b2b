#ifndef DDL_SERVER_ENGINE_ENGINE_CORE_H_
#define DDL_SERVER_ENGINE_ENGINE_CORE_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/model_runner.h"
#include "model/tokenizer/tokenizer.h"
#include "server/engine/active_request.h"
#include "server/engine/admission.h"
#include "server/engine/block_manager.h"
#include "server/engine/delivery_queue.h"
#include "server/engine/engine_options.h"
#include "server/engine/gate_statistics.h"
#include "server/engine/in_flight_step.h"
#include "server/engine/observer.h"
#include "server/engine/request.h"
#include "server/engine/scheduler.h"
#include "server/engine/step_time_model.h"

namespace ddl {

// What the step thread does: takes requests in, schedules and computes steps, and decides what
// becomes of each request. One thread at a time, but for what says otherwise.
class EngineCore {
 public:
  // `tokenizer` may be null. It, `observer` and `admission` outlive this.
  EngineCore(const EngineOptions& options, std::unique_ptr<ModelRunner> runner,
             const Tokenizer* tokenizer, EngineObserver* observer, Admission* admission,
             std::function<absl::Time()> now);

  absl::Status WarmUp();
  // As Engine::Step and Settle.
  bool Step();
  void Settle();
  // Ends every request.
  void EndAll(const absl::Status& status);
  // When the clock next ends a request.
  absl::Time NextTimeout() const;

  // Any thread.
  const ModelDescription& model() const { return runner_->description(); }
  absl::Duration running_step() const;

 private:
  static constexpr int64_t kNoStep = std::numeric_limits<int64_t>::min();

  // Takes in what was submitted, cancelled and resumed since the last turn.
  void AcceptCalls();
  // Ends who was cancelled or whose time is over; promotes who has waited for long.
  void EndCancelledAndExpired(absl::Time now);
  // Schedules a step and gives it to the runner. False when there is nothing to compute.
  bool BeginStep(absl::Time turn);
  int32_t PrefillBudget() const;
  // Returns how many requests have just started.
  int32_t MarkStarted(const StepPlan& plan, absl::Time now);
  // Gives observer and sinks what came since the last time. False when that was nothing.
  bool Deliver();
  void DeliverEnds();
  // Waits for the step begun first, and processes its output. `before`: how one failed that it was
  // begun after.
  void FinishStep(const absl::Status& before = absl::OkStatus());
  void ProcessStepOutput(const InFlightStep& step, absl::StatusOr<std::vector<ChunkOutput>> outputs,
                         absl::Time now);
  void ReportStep(const InFlightStep& step);

  // What one chunk of a request brought.
  void CountComputed(const InFlightStep::Chunk& chunk);
  void AcceptOutput(const InFlightStep::Chunk& chunk, ChunkOutput output, absl::Time now);
  void AcceptToken(ActiveRequest& request, RequestPart& part, SampledToken token, absl::Time now);
  // A part has all its output. Ends the request with its last part.
  void FinishPart(ActiveRequest& request, RequestPart& part, absl::Time now);

  void Pause(ActiveRequest& request, absl::Time now);
  void ResumePaused(ActiveRequest& request);
  void Promote(ActiveRequest& request, absl::Time now);
  // Takes a request out of the batch and frees all it holds. `noticed`: when the cancel or the
  // deadline came.
  void End(ActiveRequest& request, absl::Status status, EndReason reason, absl::Time noticed);
  void EndExpired(ActiveRequest& request);
  void EndQueueTimeout(ActiveRequest& request);
  void EndSlowReader(ActiveRequest& request);

  ActiveRequest& RequestOf(const Sequence& sequence) {
    return *requests_.at(sequence.rank().request_id);
  }
  RequestPart& PartOf(const Sequence& sequence) {
    return RequestOf(sequence).parts[sequence.rank().index];
  }
  SchedulerLoad scheduler_load() const;

  // Constant after construction.
  const EngineOptions options_;
  const std::unique_ptr<ModelRunner> runner_;
  EngineObserver* const observer_;
  Admission* const admission_;
  const std::function<absl::Time()> now_;
  const TokenId vocab_size_;

  BlockManager blocks_;  // outlive the requests' tables
  Scheduler scheduler_;
  std::unordered_map<uint64_t, std::unique_ptr<ActiveRequest>> requests_;  // by id
  std::deque<InFlightStep> steps_;
  DeliveryQueue deliveries_;
  std::vector<ActiveRequest*> ended_;  // of requests_, with OnEnd due after the deliveries
  std::vector<Admission::Cancellation> cancellations_;  // to be acted on in this turn
  absl::Time last_step_ended_ = absl::InfinitePast();
  StepTimeModel step_times_;
  GateStatistics gates_;

  std::atomic<int64_t> step_began_{kNoStep};  // Unix nanoseconds, by now_
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_ENGINE_CORE_H_
