#ifndef DDL_SERVER_ENGINE_ENGINE_H_
#define DDL_SERVER_ENGINE_ENGINE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "model/model_runner.h"
#include "model/tokenizer/tokenizer.h"
#include "server/engine/engine_options.h"
#include "server/engine/observer.h"
#include "server/engine/request.h"

namespace ddl {

class Admission;
class EngineCore;

// Names a submitted request. Cheap to copy; valid after the request has ended.
struct RequestHandle {
  uint64_t id = 0;
};

// Runs requests over one model by continuous batching: every step takes one packed list of
// positions, decode tokens of running sequences and chunks of prompts and embed inputs together.
// A request's tokens depend on its own input and seed only.
//
// Submit, Cancel and the other public methods may be called from any thread; Submit, Cancel and
// Resume also from a sink. Exactly one thread steps: the engine's own after Start, or the caller
// of Step in tests. As long as a request is there that is not paused, a step has something to
// compute, so that cancels and deadlines, which every step reads, never wait for other traffic.
// When all are paused the step thread sleeps until a call or the next deadline or timeout.
class Engine {
 public:
  // `tokenizer` may be null (token ids only). `observer` must outlive the engine and must not
  // call it. `now` is the clock that deadlines are read against and durations measured with; any
  // thread may call it. INVALID_ARGUMENT for options that cannot work together.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const EngineOptions& options, std::unique_ptr<ModelRunner> runner,
      std::shared_ptr<const Tokenizer> tokenizer, EngineObserver* observer,
      std::function<absl::Time()> now = absl::Now);

  ~Engine();  // Stop()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queues a validated request, or refuses it at once:
  //   RESOURCE_EXHAUSTED  QUEUE_FULL, TOKENS_FULL, DEADLINE_INFEASIBLE (those before it will not
  //                       have started by its deadline), with RetryInfo from the measured rate
  //   FAILED_PRECONDITION TOO_LARGE: can never fit in the KV cache, needed and available tokens
  //   UNAVAILABLE         DRAINING, with RetryInfo
  //   DEADLINE_EXCEEDED   already past
  // After a failure the sink is never called. After success OnEnd comes exactly once, possibly
  // before Submit returns.
  absl::StatusOr<RequestHandle> Submit(Request request, std::shared_ptr<RequestSink> sink);
  // A sink that answered kFull takes more. Nothing happens when the request is not paused.
  void Resume(RequestHandle handle);
  // The request leaves the batch before the next step and ends with CANCELLED. Nothing happens
  // when it has ended.
  void Cancel(RequestHandle handle);

  // Runs one step of each kind the model will see, through the real runner, before anyone is
  // served. Call before Start.
  absl::Status WarmUp();
  // Starts the step thread. At most once. While nothing can be computed it sleeps by the system's
  // clock for as long as `now` says that nothing will happen.
  void Start();
  // One turn of the step thread, on the calling thread, without Start. The next step is begun;
  // while it is computed, clients are given what the step before brought; then it is finished, and
  // its output is processed, to be delivered in the next turn. Where the runner takes two steps,
  // and the next one can be begun without this one's tokens, that is done before this one is
  // finished. False when there was nothing to do.
  bool Step();
  // Finishes the steps in flight and delivers what is left, on the thread that steps.
  void Settle();

  // From now on Submit answers UNAVAILABLE.
  void StopAdmission();
  // Waits until every request has ended; false when `deadline`, of the system's clock, came
  // first.
  bool WaitUntilIdle(absl::Time deadline);
  // Ends every request with UNAVAILABLE and the step thread. Not from a sink.
  void Stop();

  EngineLoad load() const;
  // How long the step that is being computed has been at it, by `now`; zero between steps. For a
  // watchdog: a step that does not come back holds no lock that this needs.
  absl::Duration running_step() const;
  const ModelDescription& model() const;
  const EngineOptions& options() const { return options_; }

 private:
  Engine(const EngineOptions& options, std::unique_ptr<ModelRunner> runner,
         std::shared_ptr<const Tokenizer> tokenizer, EngineObserver* observer,
         std::function<absl::Time()> now);

  void Run();  // the step thread

  // Constant after construction.
  const EngineOptions options_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::function<absl::Time()> now_;
  const std::unique_ptr<Admission> admission_;  // any thread
  const std::unique_ptr<EngineCore> core_;      // the thread that steps

  std::atomic<uint64_t> next_id_{1};
  Mutex thread_mu_;
  std::thread thread_ ABSL_GUARDED_BY(thread_mu_);
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_ENGINE_H_
