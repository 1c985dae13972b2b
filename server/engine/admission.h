#ifndef DDL_SERVER_ENGINE_ADMISSION_H_
#define DDL_SERVER_ENGINE_ADMISSION_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/mutex.h"
#include "model/model_runner.h"
#include "server/engine/active_request.h"
#include "server/engine/engine_options.h"
#include "server/engine/observer.h"
#include "server/engine/rate_meter.h"
#include "server/engine/request.h"

namespace ddl {

// What the scheduler and its blocks contribute to EngineLoad.
struct SchedulerLoad {
  int32_t paused_slow_reader = 0;
  int32_t paused_preempted = 0;
  int32_t kv_blocks_free = 0;
  int32_t kv_blocks_used = 0;
  int32_t kv_blocks_cached = 0;
};

// Where the threads that call an engine and the one that steps meet: which requests are let in,
// what the step thread is still to be handed, and the load that both count. Thread-safe.
class Admission {
 public:
  // `observer` outlives this. `now` is the engine's clock.
  Admission(const EngineOptions& options, const ModelDescription& model, EngineObserver* observer,
            std::function<absl::Time()> now);

  // --- For the engine's callers ---

  // Queues a request for the step thread, or refuses it as Engine::Submit says.
  absl::Status Submit(std::unique_ptr<ActiveRequest> request);
  void Cancel(uint64_t id);
  void Resume(uint64_t id);
  // From now on Submit answers UNAVAILABLE.
  void StopAdmission();
  // The same, and WaitForWork answers false.
  void Stop();
  // Waits until every request has ended; false when `deadline`, of the system's clock, came first.
  bool WaitUntilIdle(absl::Time deadline);
  EngineLoad load() const;
  // When a refused client should come back, by the measured delay of the queue.
  absl::Duration RetryAfter() const;

  // --- For the step thread ---

  struct Cancellation {
    uint64_t id = 0;
    absl::Time asked;
  };
  struct Calls {
    std::vector<std::unique_ptr<ActiveRequest>> submitted;
    std::vector<Cancellation> cancelled;
    std::vector<uint64_t> resumed;
  };
  // What has been called since the last time.
  Calls TakeCalls();
  // Until there are calls, or `timeout`, of the engine's clock, comes. At once where the last turn
  // `worked` and a request is there. False: stop.
  bool WaitForWork(bool worked, absl::Time timeout);

  // The requests' first positions are being computed: they no longer wait.
  void MarkStarted(absl::Span<ActiveRequest* const> requests);
  // A step of `duration` is over, of which `started` requests were new.
  void MarkStep(int32_t started, absl::Duration duration, const SchedulerLoad& load);
  // The requests neither wait nor run any more; their sinks are about to hear it.
  void MarkEnded(absl::Span<ActiveRequest* const> requests, const SchedulerLoad& load);
  // The sinks of so many requests have heard their end.
  void MarkDelivered(int32_t requests);
  void UpdateLoad(const SchedulerLoad& load);

 private:
  absl::Status Check(const ActiveRequest& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckSize(const ActiveRequest& request) const;
  // Counts a refusal; with RetryInfo where there is some.
  absl::Status Refuse(RejectReason reason, absl::Status status) const;
  // The requests that will start before one of this priority.
  int32_t NumAhead(Priority priority) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CountWaiting(const ActiveRequest& request, int32_t change)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Duration RetryAfterLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetLoad(const SchedulerLoad& load) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PublishLoad() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const EngineOptions options_;
  const int64_t cache_tokens_;  // that the K/V cache holds
  EngineObserver* const observer_;
  const std::function<absl::Time()> now_;

  mutable Mutex mu_;
  CondVar work_;  // something was submitted, cancelled or resumed, or stopping_
  CondVar idle_;  // num_requests_ is 0
  bool admitting_ ABSL_GUARDED_BY(mu_) = true;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  Calls calls_ ABSL_GUARDED_BY(mu_);               // not taken yet
  int32_t num_requests_ ABSL_GUARDED_BY(mu_) = 0;  // admitted, OnEnd not yet called
  EngineLoad load_ ABSL_GUARDED_BY(mu_);
  std::array<int32_t, 3> waiting_by_priority_ ABSL_GUARDED_BY(mu_) = {};
  RateMeter starts_ ABSL_GUARDED_BY(mu_);  // requests started while others waited
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_ADMISSION_H_
