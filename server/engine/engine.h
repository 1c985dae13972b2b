#ifndef DDL_SERVER_ENGINE_ENGINE_H_
#define DDL_SERVER_ENGINE_ENGINE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "model/model_runner.h"
#include "model/tokenizer/tokenizer.h"
#include "server/engine/active_request.h"
#include "server/engine/block_manager.h"
#include "server/engine/gate_statistics.h"
#include "server/engine/observer.h"
#include "server/engine/rate_meter.h"
#include "server/engine/request.h"
#include "server/engine/scheduler.h"
#include "server/engine/step_time_model.h"

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
  // succeed. The engine fails the requests of each and goes on until Stop. Null: nobody is told.
  std::function<void(const absl::Status&)> on_device_lost = nullptr;
  // Called on the step thread when all sinks have been told what there was for them, before what
  // comes next is computed. Null: nobody needs to know.
  std::function<void()> on_told = nullptr;
};

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
  // while it is computed, clients are told what the step before brought; then it is finished, and
  // what it brought is decided, to be told in the next turn. Where the runner takes two steps, and
  // the next one can be begun from what the host knows, that is done before this one is finished.
  // False when there was nothing to do.
  bool Step();
  // Finishes what is under way and tells what is left to tell, on the thread that steps.
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
  const ModelDescription& model() const { return runner_->description(); }
  const EngineOptions& options() const { return options_; }

 private:
  struct Cancellation {
    uint64_t id = 0;
    absl::Time asked;
  };
  static constexpr int64_t kNoStep = std::numeric_limits<int64_t>::min();

  // Between the runner's Begin and its Finish.
  struct StepUnderWay {
    struct Chunk {
      ScheduledChunk scheduled;
      ActiveRequest* request = nullptr;
      RequestPart* part = nullptr;
      int32_t run = 0;  // of its sequence
      ComputedPositions computed;
    };
    std::vector<Chunk> chunks;
    int32_t decode_tokens = 0;
    int32_t prefill_tokens = 0;
    int32_t started_requests = 0;
    // Whether the next can be begun before this one is finished.
    bool may_be_followed = false;
    std::vector<size_t> gates_asked;    // chunks
    std::vector<int32_t> block_tables;  // the runner's chunks refer to it
    absl::Time begin;                   // of the turn
    absl::Duration scheduling;
    absl::Duration in_runner;
    // What has ended since and the step, or one before it, may still refer to.
    std::vector<std::unique_ptr<ActiveRequest>> ended_requests;
    std::vector<std::unique_ptr<Sequence>> ended_sequences;
  };
  // What a sink is to be told; a token, the observer too.
  struct TokenMessage {
    RequestPart* part = nullptr;
    bool first = false;
    absl::Duration latency;  // since the request came, or since the token before
  };
  struct Message {
    ActiveRequest* request = nullptr;
    std::variant<RequestStart, TokenMessage, InputEmbedding, InputScore> what;
  };

  Engine(const EngineOptions& options, std::unique_ptr<ModelRunner> runner,
         std::shared_ptr<const Tokenizer> tokenizer, EngineObserver* observer,
         std::function<absl::Time()> now);

  // The parts of a turn, on the thread that steps.
  void AcceptCalls();
  void EndCancelledAndExpired(absl::Time now);
  // Schedules a step and gives it to the runner. False when nobody is to be computed.
  bool BeginStep(absl::Time turn);
  int32_t PrefillBudget() const;
  // Returns how many requests have just started.
  int32_t MarkStarted(const StepPlan& plan, absl::Time now);
  std::vector<SequenceChunk> ToChunks(const StepPlan& plan, StepUnderWay* step);
  void MarkBegun(StepUnderWay* step);
  static bool MayBeFollowed(const StepUnderWay& step, absl::Span<const SequenceChunk> chunks);
  // Tells observer and sinks all that was decided since the last time. False when that was nothing.
  bool Tell();
  void Tell(Message& message);
  void TellEnds();
  // Waits for the step begun first, and decides what it brought. `before`: how one failed that it
  // was begun after.
  void FinishStep(const absl::Status& before = absl::OkStatus());
  void Decide(const StepUnderWay& step, absl::StatusOr<std::vector<ChunkOutput>> outputs,
              absl::Time now);
  void ReportStep(const StepUnderWay& step);

  // What one chunk of a request brought.
  void CountComputed(const StepUnderWay::Chunk& chunk);
  void AcceptOutput(const StepUnderWay::Chunk& chunk, ChunkOutput output, absl::Time now);
  void AcceptToken(ActiveRequest& request, RequestPart& part, SampledToken token, absl::Time now);
  // A part has all its output. Ends the request with its last part.
  void FinishPart(ActiveRequest& request, RequestPart& part, absl::Time now);

  void Pause(ActiveRequest& request, absl::Time now);
  void ResumePaused(ActiveRequest& request);
  void Age(ActiveRequest& request, absl::Time now);
  // Takes a request out of the batch and frees all it holds. `noticed`: when the cancel or the
  // deadline came.
  void End(ActiveRequest& request, absl::Status status, std::string_view finish_reason,
           absl::Time noticed);
  void EndExpired(ActiveRequest& request);
  void EndQueueTimeout(ActiveRequest& request);
  void EndSlowReader(ActiveRequest& request);
  ActiveRequest& RequestOf(const Sequence& sequence) {
    return *requests_.at(sequence.rank().request_id);
  }
  RequestPart& PartOf(const Sequence& sequence) {
    return RequestOf(sequence).parts[sequence.rank().index];
  }
  void UpdateLoad() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // The step thread.
  void Run();
  // Until a step may have something to do. `worked`: the last one had. False: stop.
  bool WaitForWork(bool worked);
  absl::Time NextTimeout() const;  // of any request

  // Admission, on the submitting thread.
  std::unique_ptr<ActiveRequest> Activate(Request request, std::shared_ptr<RequestSink> sink);
  TokenId VocabSize() const;
  absl::Status CheckSize(const Request& request) const;
  absl::Status CheckAdmission(const ActiveRequest& request, absl::Status size)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The requests that will start before one of this priority.
  int32_t NumAhead(Priority priority) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CountWaiting(const ActiveRequest& request, int32_t change)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Duration RetryAfter() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PublishLoad() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const EngineOptions options_;
  const std::unique_ptr<ModelRunner> runner_;  // steps: the step thread alone
  const std::shared_ptr<const Tokenizer> tokenizer_;
  EngineObserver* const observer_;
  const std::function<absl::Time()> now_;

  // The step thread alone. The blocks outlive the requests' tables.
  BlockManager blocks_;
  Scheduler scheduler_;
  std::unordered_map<uint64_t, std::unique_ptr<ActiveRequest>> requests_;  // by id
  std::deque<StepUnderWay> steps_;
  std::vector<Message> messages_;            // due
  std::vector<ActiveRequest*> ended_;        // of requests_, with OnEnd due after the messages
  std::vector<Cancellation> cancellations_;  // to be acted on in this step
  absl::Time last_step_ended_ = absl::InfinitePast();
  StepTimeModel step_times_;
  GateSampler gates_;

  std::atomic<uint64_t> next_id_{1};
  std::atomic<int64_t> step_began_{kNoStep};  // Unix nanoseconds, by now_

  mutable Mutex mu_;
  CondVar work_;  // something was submitted, cancelled or resumed, or stopping_
  CondVar idle_;  // num_requests_ is 0
  bool admitting_ ABSL_GUARDED_BY(mu_) = true;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::unique_ptr<ActiveRequest>> submitted_ ABSL_GUARDED_BY(mu_);
  std::vector<Cancellation> cancelled_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t> resumed_ ABSL_GUARDED_BY(mu_);
  int32_t num_requests_ ABSL_GUARDED_BY(mu_) = 0;  // admitted, OnEnd not yet called
  EngineLoad load_ ABSL_GUARDED_BY(mu_);
  std::array<int32_t, 3> waiting_by_priority_ ABSL_GUARDED_BY(mu_) = {};
  RateMeter starts_ ABSL_GUARDED_BY(mu_);  // requests started while others waited

  Mutex thread_mu_;
  std::thread thread_ ABSL_GUARDED_BY(thread_mu_);
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_ENGINE_H_
