#ifndef DDL_SERVER_ENGINE_ENGINE_H_
#define DDL_SERVER_ENGINE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/model_runner.h"
#include "model/tokenizer.h"
#include "server/engine/observer.h"
#include "server/engine/request.h"

namespace ddl {

struct EngineOptions {
  int32_t max_running_sequences = 64;
  int32_t max_waiting_requests = 256;
  int64_t max_waiting_tokens = 262144;
  // Positions computed per step: decodes first, prefill chunks fill the rest.
  int32_t max_step_tokens = 512;
  int32_t max_context_length = 1024;  // tokens, prompt and completion together
};

// Names a submitted request. Cheap to copy; valid after the request has ended.
struct RequestHandle {
  uint64_t id = 0;
};

// Runs requests over one model by continuous batching: every step takes one packed list of
// positions, decode tokens of running sequences and chunks of prompts and embed inputs together.
// A request's tokens depend on its own input and seed only.
//
// Submit, Cancel and the other public methods may be called from any thread. Exactly one thread
// steps: the engine's own after Start, or the caller of Step in tests.
class Engine {
 public:
  // `tokenizer` may be null (token ids only). `observer` must outlive the engine. `now` is the
  // clock that deadlines are read against.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const EngineOptions& options, std::unique_ptr<ModelRunner> runner,
      std::shared_ptr<const Tokenizer> tokenizer, EngineObserver* observer,
      std::function<absl::Time()> now = absl::Now);

  // Stops the step thread; requests not ended get UNAVAILABLE.
  virtual ~Engine() = default;

  // Queues a validated request, or refuses it at once:
  //   RESOURCE_EXHAUSTED  QUEUE_FULL, TOKENS_FULL with RetryInfo from the measured rate
  //   FAILED_PRECONDITION TOO_LARGE: can never fit in the KV cache, needed and available tokens
  //   UNAVAILABLE         DRAINING
  //   DEADLINE_EXCEEDED   already past
  // After a failure the sink is never called. After success OnEnd comes exactly once, possibly
  // before Submit returns.
  virtual absl::StatusOr<RequestHandle> Submit(Request request,
                                               std::shared_ptr<RequestSink> sink) = 0;
  // The request leaves the batch before the next step and ends with CANCELLED. Nothing happens
  // when it has ended.
  virtual void Cancel(RequestHandle handle) = 0;

  // Runs one step of each kind the model will see, through the real runner, before anyone is
  // served. Call before Start.
  virtual absl::Status WarmUp() = 0;
  // Starts the step thread.
  virtual void Start() = 0;
  // One step on the calling thread, without Start. False when there was nothing to do.
  virtual bool Step() = 0;

  // From now on Submit answers UNAVAILABLE.
  virtual void StopAdmission() = 0;
  // Waits until every request has ended; false when `deadline` came first.
  virtual bool WaitUntilIdle(absl::Time deadline) = 0;
  // Ends every request with UNAVAILABLE and the step thread.
  virtual void Stop() = 0;

  virtual EngineLoad load() const = 0;
  virtual const ModelDescription& model() const = 0;
  virtual const EngineOptions& options() const = 0;
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_ENGINE_H_
