#include "server/inference_service.h"

#include <grpc/grpc.h>
#include <grpcpp/alarm.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "server/engine/mutex.h"
#include "server/engine/status_details.h"

namespace ddl {
namespace {

// A client's own deadline ends a call with a cancellation that reaches us a little before the
// deadline that it told us: that one is rounded up (to 10 ms for timeouts of seconds) and counts
// from the call's arrival. This close to the deadline, a cancellation is left to the deadline.
constexpr absl::Duration kDeadlineSlack = absl::Milliseconds(20);

// Events of a stream, for each of its completions, that the engine has brought and gRPC has not
// taken yet: at so many the request is paused. At half of it it goes on.
constexpr int kFullOutbox = 64;
// At least this long, and at least slow_reader_timeout, an ended stream waits for a client that
// takes nothing.
constexpr absl::Duration kLeastEndGrace = absl::Seconds(1);

// The model for a call; refusals are counted.
absl::StatusOr<const ReadyModel*> FindModel(const RpcSurroundings& surroundings,
                                            const std::string& name) {
  const absl::StatusOr<const ReadyModel*> model = surroundings.models.FindReady(name);
  if (absl::IsUnavailable(model.status())) {
    const ServedModel& served = **surroundings.models.Find(name);
    surroundings.metrics.OnRejected(
        served.name(), DetailsOf(model.status()).reason == "DRAINING" ? "draining" : "loading");
  }
  return model;
}

// The model and the checked form of a request to it.
template <typename Call>
struct Prepared {
  const ReadyModel* model;
  Call call;
};

template <typename Call, typename Request>
absl::StatusOr<Prepared<Call>> Prepare(const RpcSurroundings& surroundings,
                                       const grpc::CallbackServerContext& context,
                                       const absl::Status& parsed, const Request& request,
                                       absl::StatusOr<Call> (*parse)(const Request&,
                                                                     const RequestLimits&)) {
  if (!parsed.ok()) return parsed;
  const absl::StatusOr<const ReadyModel*> model = FindModel(surroundings, request.model());
  if (!model.ok()) return model.status();
  absl::StatusOr<Call> call = parse(request, (*model)->limits);
  if (!call.ok()) return call.status();
  call->request.deadline = ToDeadline(context.deadline());
  return Prepared<Call>{*model, *std::move(call)};
}

// A call that the engine works on. The reactor is shared with the engine, as its sink, and holds
// itself until gRPC is done with it.
class EngineCall : public RequestSink, public std::enable_shared_from_this<EngineCall> {
 protected:
  EngineCall(const RpcSurroundings& surroundings, Method method, const std::string& model)
      : surroundings_(surroundings), record_(std::in_place, surroundings, method, model) {}

  // Until Release. Before anything else.
  void Hold() { self_ = shared_from_this(); }
  // gRPC's last word; `this` may be gone afterwards.
  void Release() {
    record_.reset();
    const std::shared_ptr<EngineCall> self = std::move(self_);
  }

  absl::Status Submit(const ReadyModel& model, const Request& request) {
    engine_ = model.engine.get();
    deadline_ = request.deadline;
    const absl::StatusOr<RequestHandle> handle = engine_->Submit(request, shared_from_this());
    if (handle.ok()) handle_ = *handle;
    return handle.status();
  }

  // gRPC calls back only after the handler, and with it Submit, has returned.
  void CancelInEngine() {
    if (handle_.has_value() && deadline_ - absl::Now() > kDeadlineSlack) engine_->Cancel(*handle_);
  }

  // From where CancelInEngine may be called.
  void ResumeInEngine() {
    if (handle_.has_value()) engine_->Resume(*handle_);
  }

  // Runs `function` on the reply thread, with this call alive.
  template <typename Function>
  void Reply(Function function) {
    surroundings_.replies.Post(
        [self = shared_from_this(), function = std::move(function)]() mutable { function(); });
  }

  grpc::Status Answer(const absl::Status& status) { return record_->Answer(status); }

  const RpcSurroundings& surroundings_;

 private:
  std::optional<RpcRecord> record_;
  std::shared_ptr<EngineCall> self_;
  // Constant after the handler.
  Engine* engine_ = nullptr;
  std::optional<RequestHandle> handle_;
  absl::Time deadline_ = absl::InfiniteFuture();
};

template <typename Request>
std::string ModelAskedFor(const Request& request, const absl::Status& parsed) {
  return parsed.ok() ? request.model() : std::string(kUnknownModel);
}

// A call with one answer, made of what the engine brings until the end. `Derived` takes that,
// says how to Parse a ProtoRequest, and makes the response: Respond(end).
template <typename Derived, typename ProtoRequest, typename Call>
class UnaryCall : public grpc::ServerUnaryReactor, public EngineCall {
 public:
  static grpc::ServerUnaryReactor* Start(const RpcSurroundings& surroundings,
                                         const grpc::CallbackServerContext& context,
                                         const grpc::ByteBuffer& request_bytes,
                                         grpc::ByteBuffer* response_bytes) {
    ProtoRequest request;
    const absl::Status parsed = ParseRequest(request_bytes, &request);
    auto call = std::make_shared<Derived>(surroundings, ModelAskedFor(request, parsed));
    call->response_bytes_ = response_bytes;
    call->Hold();
    auto prepared = Prepare(surroundings, context, parsed, request, Derived::kParse);
    absl::Status status = prepared.status();
    if (status.ok()) {
      call->model_ = prepared->model;
      call->call_ = std::move(prepared->call);
      call->BeforeSubmit();
      status = call->Submit(*call->model_, call->call_.request);
    }
    if (!status.ok()) call->Finish(call->Answer(status));
    return call.get();
  }

  // The step thread.
  void OnStart(RequestStart /*start*/) override {}
  SinkState OnDelta(CompletionDelta /*delta*/) override { return SinkState::kReady; }
  void OnEmbedding(InputEmbedding /*embedding*/) override {}
  void OnScore(InputScore /*score*/) override {}
  void OnEnd(RequestEnd end) override {
    Reply([this, end = std::move(end)] {
      if (end.status.ok()) *response_bytes_ = ToBytes(static_cast<Derived*>(this)->Respond(end));
      Finish(Answer(end.status));
    });
  }

  // gRPC's threads.
  void OnCancel() override { CancelInEngine(); }
  void OnDone() override { Release(); }

 protected:
  using EngineCall::EngineCall;

  // Constant after the handler.
  const ReadyModel* model_ = nullptr;
  Call call_;

 private:
  grpc::ByteBuffer* response_bytes_ = nullptr;
};

class UnaryGenerate final : public UnaryCall<UnaryGenerate, v1::GenerateRequest, GenerateCall> {
 public:
  static constexpr auto kParse = ParseGenerate;

  UnaryGenerate(const RpcSurroundings& surroundings, const std::string& model)
      : UnaryCall(surroundings, Method::kGenerate, model) {}

  void BeforeSubmit() { wholes_.resize(call_.params().n); }

  void OnStart(RequestStart start) override { start_ = std::move(start); }
  SinkState OnDelta(CompletionDelta delta) override {
    WholeCompletion& whole = wholes_[delta.index];
    whole.text += delta.text;
    std::move(delta.tokens.begin(), delta.tokens.end(), std::back_inserter(whole.tokens));
    return SinkState::kReady;
  }

  v1::GenerateResponse Respond(const RequestEnd& end) const {
    return ToGenerateResponse(call_, model_->identity, model_->tokenizer.get(), start_, wholes_,
                              end);
  }

 private:
  RequestStart start_;
  std::vector<WholeCompletion> wholes_;  // [n]
};

class UnaryEmbed final : public UnaryCall<UnaryEmbed, v1::EmbedRequest, EmbedCall> {
 public:
  static constexpr auto kParse = ParseEmbed;

  UnaryEmbed(const RpcSurroundings& surroundings, const std::string& model)
      : UnaryCall(surroundings, Method::kEmbed, model) {}

  void BeforeSubmit() {
    surroundings_.metrics.OnEmbedInputs(model_->identity.name, call_.params().inputs.size());
  }

  void OnEmbedding(InputEmbedding embedding) override {
    embeddings_.push_back(std::move(embedding));
  }

  v1::EmbedResponse Respond(const RequestEnd& end) const {
    return ToEmbedResponse(call_, model_->identity, embeddings_, end);
  }

 private:
  std::vector<InputEmbedding> embeddings_;
};

class UnaryScore final : public UnaryCall<UnaryScore, v1::ScoreRequest, ScoreCall> {
 public:
  static constexpr auto kParse = ParseScore;

  UnaryScore(const RpcSurroundings& surroundings, const std::string& model)
      : UnaryCall(surroundings, Method::kScore, model) {}

  void BeforeSubmit() {}

  void OnScore(InputScore score) override { scores_.push_back(std::move(score)); }

  v1::ScoreResponse Respond(const RequestEnd& end) const {
    return ToScoreResponse(call_, model_->tokenizer.get(), scores_, end);
  }

 private:
  std::vector<InputScore> scores_;
};

// A gRPC call kept alive: it can be cancelled also when it is over.
struct CallUnref {
  void operator()(grpc_call* call) const { grpc_call_unref(call); }
};
using CallReference = std::unique_ptr<grpc_call, CallUnref>;

CallReference Reference(grpc_call* call) {
  grpc_call_ref(call);
  return CallReference(call);
}

// Events wait in an outbox until gRPC, whose buffers hold some as well, has taken the one before.
// Of a client that reads slower than the model writes the outbox fills: then the engine pauses
// the request until it has drained, and after slow_reader_timeout ends it. Whatever ended the
// stream, a client that goes on taking nothing loses the call.
class StreamedGenerate final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                               public EngineCall {
 public:
  static grpc::ServerWriteReactor<grpc::ByteBuffer>* Start(const RpcSurroundings& surroundings,
                                                           grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer& request_bytes) {
    v1::GenerateRequest request;
    const absl::Status parsed = ParseRequest(request_bytes, &request);
    auto call = std::make_shared<StreamedGenerate>(surroundings, ModelAskedFor(request, parsed),
                                                   context->c_call());
    call->Hold();
    auto prepared = Prepare(surroundings, *context, parsed, request, ParseGenerate);
    absl::Status status = prepared.status();
    if (status.ok()) {
      call->model_ = prepared->model;
      call->call_ = std::move(prepared->call);
      call->BeforeSubmit();
      status = call->Submit(*call->model_, call->call_.request);
    }
    if (!status.ok()) call->Finish(call->Answer(status));
    return call.get();
  }

  StreamedGenerate(const RpcSurroundings& surroundings, const std::string& model, grpc_call* call)
      : EngineCall(surroundings, Method::kGenerateStream, model), grpc_call_(Reference(call)) {}

  // The step thread.
  void OnStart(RequestStart start) override {
    CountUnsent(1);
    Reply([this, start = std::move(start)] {
      Enqueue(ToBytes(ToStreamStart(call_, model_->identity, model_->tokenizer.get(), start)));
    });
    if (!call_.echo.has_value()) return;
    for (int32_t i = 0; i < call_.params().n; ++i) {
      Send({.index = i, .text = *call_.echo, .tokens = {}});
    }
  }
  SinkState OnDelta(CompletionDelta delta) override {
    CompletionDelta& gathered = gathered_[delta.index];
    gathered.text += delta.text;
    std::move(delta.tokens.begin(), delta.tokens.end(), std::back_inserter(gathered.tokens));
    if (static_cast<int64_t>(gathered.tokens.size()) >= call_.stream_interval) {
      SendGathered(delta.index);
    }
    const MutexLock lock(mu_);
    return full_ ? SinkState::kFull : SinkState::kReady;
  }
  void OnEmbedding(InputEmbedding /*embedding*/) override {}
  void OnScore(InputScore /*score*/) override {}
  void OnEnd(RequestEnd end) override {
    if (end.status.ok()) {
      for (const CompletionDelta& gathered : gathered_) {
        if (!(gathered.text.empty() && gathered.tokens.empty())) SendGathered(gathered.index);
      }
      CountUnsent(1);
    }
    Reply([this, end = std::move(end)] {
      if (end.status.ok()) Enqueue(ToBytes(ToStreamEnd(call_, end)));
      Close(end.status);
    });
  }

  // gRPC's threads.
  void OnWriteDone(bool ok) override {
    bool resume = false;
    {
      const MutexLock lock(mu_);
      writing_ = false;
      broken_ = broken_ || !ok;
      ++num_taken_;
      --num_unsent_;
      if (full_ && num_unsent_ <= full_outbox_ / 2) {
        full_ = false;
        resume = true;
      }
    }
    if (resume) ResumeInEngine();
    Advance();
  }
  void OnCancel() override { CancelInEngine(); }
  void OnDone() override {
    CallReference call;
    std::unique_ptr<grpc::Alarm> alarm;
    {
      const MutexLock lock(mu_);
      call = std::move(grpc_call_);
      alarm = std::move(end_alarm_);
    }
    call.reset();
    alarm.reset();
    Release();
  }

 private:
  void BeforeSubmit() {
    full_outbox_ = kFullOutbox * call_.params().n;
    for (int32_t i = 0; i < call_.params().n; ++i) {
      gathered_.push_back({.index = i, .text = "", .tokens = {}});
    }
  }

  void SendGathered(int32_t index) {
    Send(std::exchange(gathered_[index], {.index = index, .text = "", .tokens = {}}));
  }

  void Send(CompletionDelta delta) {
    CountUnsent(1);
    Reply([this, delta = std::move(delta)] {
      Enqueue(ToBytes(ToStreamDelta(call_, model_->tokenizer.get(), delta)));
    });
  }

  // On the step thread, and not where events are made of what it brings: the reply thread may be
  // behind.
  void CountUnsent(int events) {
    const MutexLock lock(mu_);
    num_unsent_ += events;
    full_ = full_ || num_unsent_ >= full_outbox_;
  }

  void Enqueue(grpc::ByteBuffer event) {
    {
      const MutexLock lock(mu_);
      outbox_.push_back(std::move(event));
    }
    Advance();
  }

  // No event follows; the call ends with `status` once the outbox is empty. After a failure
  // nothing more is sent.
  void Close(const absl::Status& status) {
    {
      const MutexLock lock(mu_);
      end_ = status;
      if (!status.ok()) outbox_.clear();
    }
    AwaitClient();
    Advance();
  }

  // Hands gRPC the next event, or the end, when it has taken the last one.
  void Advance() {
    std::optional<absl::Status> end;
    {
      const MutexLock lock(mu_);
      if (writing_ || finished_) return;
      if (broken_) outbox_.clear();
      if (outbox_.empty()) {
        if (!end_.has_value()) return;
        finished_ = true;
        // A client that did not get all of it has given up, whatever the engine did.
        end = broken_ && end_->ok() ? absl::CancelledError("the client went away") : *end_;
      } else {
        writing_ = true;
        event_ = std::move(outbox_.front());
        outbox_.pop_front();
      }
    }
    // Nobody else gets here before gRPC has taken the event, or after the end.
    if (end.has_value()) {
      Finish(Answer(*end));
    } else {
      StartWrite(&event_);
    }
  }

  // Gives the client of an ended stream time to take the rest, and again when it has taken
  // something by then.
  void AwaitClient() {
    const absl::Time deadline =
        absl::Now() + std::max(model_->engine->options().slow_reader_timeout, kLeastEndGrace);
    auto alarm = std::make_unique<grpc::Alarm>();
    {
      const MutexLock lock(mu_);
      num_taken_before_ = num_taken_;
    }
    alarm->Set(absl::ToChronoTime(deadline), [self = weak_from_this()](bool expired) {
      const std::shared_ptr<EngineCall> call = self.lock();
      if (expired && call != nullptr) static_cast<StreamedGenerate*>(call.get())->OnGraceOver();
    });
    // An alarm is destroyed where no lock is held: gRPC may run its function there.
    {
      const MutexLock lock(mu_);
      if (grpc_call_ != nullptr) end_alarm_.swap(alarm);
    }
  }

  void OnGraceOver() {
    CallReference call;
    {
      const MutexLock lock(mu_);
      if (grpc_call_ == nullptr) return;  // done in the meantime
      if (num_taken_ == num_taken_before_) call = Reference(grpc_call_.get());
    }
    if (call == nullptr) {
      AwaitClient();
    } else {
      grpc_call_cancel(call.get(), nullptr);
    }
  }

  // Constant after the handler.
  const ReadyModel* model_ = nullptr;
  GenerateCall call_;
  int full_outbox_ = 0;  // events

  // The step thread: by index, until stream_interval tokens are there.
  std::vector<CompletionDelta> gathered_;
  grpc::ByteBuffer event_;  // the one that gRPC is taking

  Mutex mu_;
  std::deque<grpc::ByteBuffer> outbox_ ABSL_GUARDED_BY(mu_);
  // Brought by the step thread, not taken by gRPC: on their way to the outbox, in it, or event_.
  int num_unsent_ ABSL_GUARDED_BY(mu_) = 0;
  bool full_ ABSL_GUARDED_BY(mu_) = false;  // and not drained since
  int64_t num_taken_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t num_taken_before_ ABSL_GUARDED_BY(mu_) = 0;  // when end_alarm_ was set
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // the client takes no more
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
  CallReference grpc_call_ ABSL_GUARDED_BY(mu_);  // null once gRPC is done with it
  std::unique_ptr<grpc::Alarm> end_alarm_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return UnaryGenerate::Start(surroundings_, *context, *request, response);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::GenerateStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return StreamedGenerate::Start(surroundings_, context, *request);
}

grpc::ServerUnaryReactor* InferenceService::Embed(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return UnaryEmbed::Start(surroundings_, *context, *request, response);
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return UnaryScore::Start(surroundings_, *context, *request, response);
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* /*context*/,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return ImmediateCall::Run<v1::TokenizeRequest>(
      surroundings_, Method::kTokenize, *request, response,
      [&](const v1::TokenizeRequest& tokenize) -> absl::StatusOr<v1::TokenizeResponse> {
        const absl::StatusOr<const ReadyModel*> model = FindModel(surroundings_, tokenize.model());
        if (!model.ok()) return model.status();
        return ddl::Tokenize(tokenize, (*model)->limits);
      });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* /*context*/,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return ImmediateCall::Run<v1::DetokenizeRequest>(
      surroundings_, Method::kDetokenize, *request, response,
      [&](const v1::DetokenizeRequest& detokenize) -> absl::StatusOr<v1::DetokenizeResponse> {
        const absl::StatusOr<const ReadyModel*> model =
            FindModel(surroundings_, detokenize.model());
        if (!model.ok()) return model.status();
        return ddl::Detokenize(detokenize, (*model)->limits);
      });
}

}  // namespace ddl
