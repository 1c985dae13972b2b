#include "server/inference_service.h"

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/engine/mutex.h"
#include "server/engine/status_details.h"

namespace ddl {
namespace {

// A client's own deadline ends a call with a cancellation that reaches us a little before the
// deadline that it told us: that one is rounded up (to 10 ms for timeouts of seconds) and counts
// from the call's arrival. This close to the deadline, a cancellation is left to the deadline.
constexpr absl::Duration kDeadlineSlack = absl::Milliseconds(20);

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

class UnaryGenerate final : public grpc::ServerUnaryReactor, public EngineCall {
 public:
  static grpc::ServerUnaryReactor* Start(const RpcSurroundings& surroundings,
                                         const grpc::CallbackServerContext& context,
                                         const grpc::ByteBuffer& request_bytes,
                                         grpc::ByteBuffer* response_bytes) {
    v1::GenerateRequest request;
    const absl::Status parsed = ParseRequest(request_bytes, &request);
    auto call = std::make_shared<UnaryGenerate>(surroundings, ModelAskedFor(request, parsed),
                                                response_bytes);
    call->Hold();
    auto prepared = Prepare(surroundings, context, parsed, request, ParseGenerate);
    absl::Status status = prepared.status();
    if (status.ok()) {
      call->model_ = prepared->model;
      call->call_ = std::move(prepared->call);
      status = call->Submit(*call->model_, call->call_.request);
    }
    if (!status.ok()) call->Finish(call->Answer(status));
    return call.get();
  }

  UnaryGenerate(const RpcSurroundings& surroundings, const std::string& model,
                grpc::ByteBuffer* response_bytes)
      : EngineCall(surroundings, Method::kGenerate, model), response_bytes_(response_bytes) {}

  // The step thread.
  void OnStart(RequestStart /*start*/) override {}
  SinkState OnDelta(CompletionDelta delta) override {
    whole_.text += delta.text;
    std::move(delta.tokens.begin(), delta.tokens.end(), std::back_inserter(whole_.tokens));
    return SinkState::kReady;
  }
  void OnEmbedding(InputEmbedding /*embedding*/) override {}
  void OnScore(InputScore /*score*/) override {}
  void OnEnd(RequestEnd end) override {
    Reply([this, end = std::move(end)] {
      if (end.status.ok()) {
        *response_bytes_ = ToBytes(
            ToGenerateResponse(call_, model_->identity, model_->tokenizer.get(), whole_, end));
      }
      Finish(Answer(end.status));
    });
  }

  // gRPC's threads.
  void OnCancel() override { CancelInEngine(); }
  void OnDone() override { Release(); }

 private:
  grpc::ByteBuffer* const response_bytes_;
  const ReadyModel* model_ = nullptr;
  GenerateCall call_;
  WholeCompletion whole_;
};

class UnaryEmbed final : public grpc::ServerUnaryReactor, public EngineCall {
 public:
  static grpc::ServerUnaryReactor* Start(const RpcSurroundings& surroundings,
                                         const grpc::CallbackServerContext& context,
                                         const grpc::ByteBuffer& request_bytes,
                                         grpc::ByteBuffer* response_bytes) {
    v1::EmbedRequest request;
    const absl::Status parsed = ParseRequest(request_bytes, &request);
    auto call =
        std::make_shared<UnaryEmbed>(surroundings, ModelAskedFor(request, parsed), response_bytes);
    call->Hold();
    auto prepared = Prepare(surroundings, context, parsed, request, ParseEmbed);
    absl::Status status = prepared.status();
    if (status.ok()) {
      call->model_ = prepared->model;
      call->call_ = std::move(prepared->call);
      surroundings.metrics.OnEmbedInputs(call->model_->identity.name,
                                         call->call_.params().inputs.size());
      status = call->Submit(*call->model_, call->call_.request);
    }
    if (!status.ok()) call->Finish(call->Answer(status));
    return call.get();
  }

  UnaryEmbed(const RpcSurroundings& surroundings, const std::string& model,
             grpc::ByteBuffer* response_bytes)
      : EngineCall(surroundings, Method::kEmbed, model), response_bytes_(response_bytes) {}

  // The step thread.
  void OnStart(RequestStart /*start*/) override {}
  SinkState OnDelta(CompletionDelta /*delta*/) override { return SinkState::kReady; }
  void OnScore(InputScore /*score*/) override {}
  void OnEmbedding(InputEmbedding embedding) override {
    embeddings_.push_back(std::move(embedding));
  }
  void OnEnd(RequestEnd end) override {
    Reply([this, end = std::move(end)] {
      if (end.status.ok()) {
        *response_bytes_ = ToBytes(ToEmbedResponse(call_, model_->identity, embeddings_, end));
      }
      Finish(Answer(end.status));
    });
  }

  // gRPC's threads.
  void OnCancel() override { CancelInEngine(); }
  void OnDone() override { Release(); }

 private:
  grpc::ByteBuffer* const response_bytes_;
  const ReadyModel* model_ = nullptr;
  EmbedCall call_;
  std::vector<InputEmbedding> embeddings_;
};

// Events wait in an outbox until gRPC has taken the one before.
class StreamedGenerate final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                               public EngineCall {
 public:
  static grpc::ServerWriteReactor<grpc::ByteBuffer>* Start(
      const RpcSurroundings& surroundings, const grpc::CallbackServerContext& context,
      const grpc::ByteBuffer& request_bytes) {
    v1::GenerateRequest request;
    const absl::Status parsed = ParseRequest(request_bytes, &request);
    auto call = std::make_shared<StreamedGenerate>(surroundings, ModelAskedFor(request, parsed));
    call->Hold();
    auto prepared = Prepare(surroundings, context, parsed, request, ParseGenerate);
    absl::Status status = prepared.status();
    if (status.ok()) {
      call->model_ = prepared->model;
      call->call_ = std::move(prepared->call);
      status = call->Submit(*call->model_, call->call_.request);
    }
    if (status.ok()) {
      call->Open();
    } else {
      call->Finish(call->Answer(status));
    }
    return call.get();
  }

  StreamedGenerate(const RpcSurroundings& surroundings, const std::string& model)
      : EngineCall(surroundings, Method::kGenerateStream, model) {}

  // The step thread.
  void OnStart(RequestStart /*start*/) override {}
  SinkState OnDelta(CompletionDelta delta) override {
    gathered_.text += delta.text;
    std::move(delta.tokens.begin(), delta.tokens.end(), std::back_inserter(gathered_.tokens));
    if (static_cast<int64_t>(gathered_.tokens.size()) >= call_.stream_interval) SendGathered();
    return SinkState::kReady;
  }
  void OnEmbedding(InputEmbedding /*embedding*/) override {}
  void OnScore(InputScore /*score*/) override {}
  void OnEnd(RequestEnd end) override {
    if (end.status.ok() && !(gathered_.text.empty() && gathered_.tokens.empty())) SendGathered();
    Reply([this, end = std::move(end)] {
      if (end.status.ok()) Enqueue(ToBytes(ToStreamEnd(call_, end)));
      Close(end.status);
    });
  }

  // gRPC's threads.
  void OnWriteDone(bool ok) override {
    {
      const MutexLock lock(mu_);
      writing_ = false;
      broken_ = broken_ || !ok;
    }
    Advance();
  }
  void OnCancel() override { CancelInEngine(); }
  void OnDone() override { Release(); }

 private:
  void SendGathered() {
    Reply([this, delta = std::exchange(gathered_, {})] {
      Enqueue(ToBytes(ToStreamDelta(call_, model_->tokenizer.get(), delta)));
    });
  }

  // The request has been admitted: events may go out, the first one first.
  void Open() {
    {
      const MutexLock lock(mu_);
      outbox_.push_front(ToBytes(ToStreamStart(call_, model_->identity)));
      open_ = true;
    }
    Advance();
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
    Advance();
  }

  // Hands gRPC the next event, or the end, when it has taken the last one.
  void Advance() {
    std::optional<absl::Status> end;
    {
      const MutexLock lock(mu_);
      if (!open_ || writing_ || finished_) return;
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

  // Constant after the handler.
  const ReadyModel* model_ = nullptr;
  GenerateCall call_;

  CompletionDelta gathered_;  // the step thread: until stream_interval tokens are there
  grpc::ByteBuffer event_;    // the one that gRPC is taking

  Mutex mu_;
  std::deque<grpc::ByteBuffer> outbox_ ABSL_GUARDED_BY(mu_);
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // the client takes no more
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return UnaryGenerate::Start(surroundings_, *context, *request, response);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::GenerateStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return StreamedGenerate::Start(surroundings_, *context, *request);
}

grpc::ServerUnaryReactor* InferenceService::Embed(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return UnaryEmbed::Start(surroundings_, *context, *request, response);
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* /*context*/,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return ImmediateCall::Run<v1::ScoreRequest>(
      surroundings_, Method::kScore, *request, response,
      [&](const v1::ScoreRequest& score) -> absl::StatusOr<v1::ScoreResponse> {
        const absl::StatusOr<const ReadyModel*> model = FindModel(surroundings_, score.model());
        if (!model.ok()) return model.status();
        return absl::UnimplementedError("Score: not served by this version of the server");
      });
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
