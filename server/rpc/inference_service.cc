#include "server/rpc/inference_service.h"

#include <grpc/grpc.h>
#include <grpcpp/alarm.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "base/mutex.h"
#include "base/status_details.h"
#include "ddl/v1/inference.pb.h"
#include "server/conversion/proto_time.h"
#include "server/conversion/request_checks.h"
#include "server/conversion/responses.h"
#include "server/rpc/call_record.h"
#include "server/rpc/engine_call.h"
#include "server/rpc/immediate_call.h"
#include "server/rpc/received_call.h"
#include "server/rpc/stream_call.h"

namespace ddl {
namespace {

// At least this long, and at least slow_reader_timeout, an ended stream waits for a client that
// takes nothing.
constexpr absl::Duration kLeastEndGrace = absl::Seconds(1);

// The model for a call; refusals are counted.
absl::StatusOr<const ReadyModel*> FindModel(const RpcContext& rpc, const std::string& name) {
  const absl::StatusOr<const ReadyModel*> model = rpc.models.FindReady(name);
  if (absl::IsUnavailable(model.status())) {
    const ServedModel& served = **rpc.models.Find(name);
    rpc.metrics.OnRejected(served.name(), DetailsOf(model.status()).reason == "DRAINING"
                                              ? RejectReason::kDraining
                                              : RejectReason::kLoading);
  }
  return model;
}

// The model and the checked form of a request to it.
template <typename Call>
struct Prepared {
  const ReadyModel* model;
  Call call;
};

// Of a call whose key may have it computed.
template <typename Call, typename ProtoRequest>
absl::StatusOr<Prepared<Call>> Prepare(
    const RpcContext& rpc, const grpc::CallbackServerContext& context,
    const ReceivedCall<ProtoRequest>& received,
    absl::StatusOr<Call> (*parse)(const ProtoRequest&, const RequestLimits&), CallRecord* record) {
  if (absl::Status status = record->Admit(); !status.ok()) return status;
  if (!received.status.ok()) return received.status;
  const absl::StatusOr<const ReadyModel*> model = FindModel(rpc, received.request.model());
  if (!model.ok()) return model.status();
  const RequestLimits& limits = (*model)->limits;
  absl::StatusOr<Call> call = parse(received.request, limits);
  if (!call.ok()) return call.status();
  Request& request = call->request;
  if (absl::Status status = record->CheckRight(request.priority); !status.ok()) return status;
  const int64_t tokens = request.MaxTokens(limits.max_context_length);
  if (absl::Status status = record->TakeTokens(tokens); !status.ok()) return status;
  request.deadline = ToDeadline(context.deadline());
  return Prepared<Call>{*model, *std::move(call)};
}

// A call with one answer, made of what the engine brings until the end. `Derived` takes that,
// says how to Parse a ProtoRequest, and makes the response: Respond(end).
template <typename Derived, typename ProtoRequest, typename Call>
class UnaryCall : public OneMessageReactor, public EngineCall {
 public:
  static OneMessageReactor* Start(const RpcContext& rpc, grpc::CallbackServerContext* context) {
    auto call = std::make_shared<Derived>(rpc, context);
    call->Hold();
    call->Begin();
    return call.get();
  }

  // The step thread.
  void OnStart(RequestStart /*start*/) override {}
  SinkState OnDelta(CompletionDelta /*delta*/) override { return SinkState::kReady; }
  void OnEmbedding(InputEmbedding /*embedding*/) override {}
  void OnScore(InputScore /*score*/) override {}
  void OnEnd(RequestEnd end) override {
    record_->SetOutcome(end.usage, end.timings);
    Reply([this, end = std::move(end)] {
      if (end.status.ok()) response_bytes_ = ToBytes(static_cast<Derived*>(this)->Respond(end));
      FinishWith(record_->Answer(end.status));
    });
  }

  // gRPC's threads.
  void OnCancel() override { CancelInEngine(); }
  void OnDone() override {
    record_.reset();
    Release();
  }

 protected:
  UnaryCall(const RpcContext& rpc, Method method, grpc::CallbackServerContext* context)
      : OneMessageReactor(rpc, context), EngineCall(rpc.replies), rpc_(rpc), method_(method) {}

  const RpcContext& rpc_;
  // Constant once the request is submitted.
  const ReadyModel* model_ = nullptr;
  Call call_;

 private:
  void OnRequest(CallMetadata metadata, grpc::CallbackServerContext* context,
                 const grpc::ByteBuffer& request_bytes) override {
    auto received = Receive<ProtoRequest>(rpc_, std::move(metadata), request_bytes);
    record_.emplace(rpc_, method_, std::move(received.metadata), received.model, context);
    auto prepared = Prepare(rpc_, *context, received, Derived::kParse, &*record_);
    absl::Status status = prepared.status();
    if (status.ok()) {
      model_ = prepared->model;
      call_ = std::move(prepared->call);
      static_cast<Derived*>(this)->BeforeSubmit();
      status = Submit(*model_->engine, call_.request);
    }
    if (!status.ok()) FinishWith(record_->Answer(status));
  }

  const Method method_;
  std::optional<CallRecord> record_;  // from the request until gRPC is done with the call
};

class UnaryGenerate final : public UnaryCall<UnaryGenerate, v1::GenerateRequest, GenerateCall> {
 public:
  static constexpr auto kParse = ParseGenerate;

  UnaryGenerate(const RpcContext& rpc, grpc::CallbackServerContext* context)
      : UnaryCall(rpc, Method::kGenerate, context) {}

  void BeforeSubmit() { results_.resize(call_.params().n); }

  void OnStart(RequestStart start) override { start_ = std::move(start); }
  SinkState OnDelta(CompletionDelta delta) override {
    CompletionResult& result = results_[delta.index];
    result.text += delta.text;
    std::move(delta.tokens.begin(), delta.tokens.end(), std::back_inserter(result.tokens));
    return SinkState::kReady;
  }

  v1::GenerateResponse Respond(const RequestEnd& end) const {
    return ToGenerateResponse(call_, model_->identity, model_->tokenizer.get(), start_, results_,
                              end);
  }

 private:
  RequestStart start_;
  std::vector<CompletionResult> results_;  // [n]
};

class UnaryEmbed final : public UnaryCall<UnaryEmbed, v1::EmbedRequest, EmbedCall> {
 public:
  static constexpr auto kParse = ParseEmbed;

  UnaryEmbed(const RpcContext& rpc, grpc::CallbackServerContext* context)
      : UnaryCall(rpc, Method::kEmbed, context) {}

  void BeforeSubmit() {
    rpc_.metrics.OnEmbedInputs(model_->identity.name, call_.params().inputs.size());
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

  UnaryScore(const RpcContext& rpc, grpc::CallbackServerContext* context)
      : UnaryCall(rpc, Method::kScore, context) {}

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

// The stream over gRPC, whose buffers hold some events as well.
class StreamedGenerate final : public OneMessageReactor, public StreamCall<grpc::ByteBuffer> {
 public:
  static OneMessageReactor* Start(const RpcContext& rpc, grpc::CallbackServerContext* context) {
    auto call = std::make_shared<StreamedGenerate>(rpc, context);
    call->Hold();
    call->OneMessageReactor::Begin();
    return call.get();
  }

  StreamedGenerate(const RpcContext& rpc, grpc::CallbackServerContext* context)
      : OneMessageReactor(rpc, context),
        StreamCall(rpc.replies),
        rpc_(rpc),
        grpc_call_(Reference(context->c_call())) {}

  // The step thread.
  void OnEnd(RequestEnd end) override {
    record_->SetOutcome(end.usage, end.timings);
    StreamCall::OnEnd(std::move(end));
  }

  // gRPC's threads.
  void OnWriteDone(bool ok) override { OnTaken(ok); }
  void OnCancel() override { CancelInEngine(); }
  void OnDone() override {
    CallReference call;
    std::unique_ptr<grpc::Alarm> alarm;
    {
      const MutexLock lock(mu_);
      call = std::move(grpc_call_);
      alarm = std::move(alarm_);
    }
    call.reset();
    alarm.reset();
    record_.reset();
    Release();
  }

 private:
  void OnRequest(CallMetadata metadata, grpc::CallbackServerContext* context,
                 const grpc::ByteBuffer& request_bytes) override {
    auto received = Receive<v1::GenerateRequest>(rpc_, std::move(metadata), request_bytes);
    record_.emplace(rpc_, Method::kGenerateStream, std::move(received.metadata), received.model,
                    context);
    auto prepared = Prepare(rpc_, *context, received, ParseGenerate, &*record_);
    absl::Status status = prepared.status();
    if (status.ok()) {
      model_ = prepared->model;
      call_ = std::move(prepared->call);
      Engine& engine = *model_->engine;
      StreamCall::Begin(
          {.num_completions = call_.params().n,
           .stream_interval = call_.stream_interval,
           .echo = call_.echo,
           .end_grace = std::max(engine.options().slow_reader_timeout, kLeastEndGrace)});
      status = Submit(engine, call_.request);
    }
    if (!status.ok()) FinishStream(status);
  }

  grpc::ByteBuffer MakeStart(const RequestStart& start) override {
    return ToBytes(ToStreamStart(call_, model_->identity, model_->tokenizer.get(), start));
  }
  grpc::ByteBuffer MakeDelta(const CompletionDelta& delta) override {
    return ToBytes(ToStreamDelta(call_, model_->tokenizer.get(), delta));
  }
  grpc::ByteBuffer MakeEnd(const RequestEnd& end) override {
    return ToBytes(ToStreamEnd(call_, end));
  }

  void WriteEvent(const grpc::ByteBuffer& event) override {
    record_->BeginAnswer();
    StartWrite(&event);
  }
  void FinishStream(const absl::Status& status) override { Finish(record_->Answer(status)); }
  void CallOnGraceOver(absl::Duration delay) override {
    auto alarm = std::make_unique<grpc::Alarm>();
    alarm->Set(absl::ToChronoTime(absl::Now() + delay), [self = weak_from_this()](bool expired) {
      const std::shared_ptr<EngineCall> call = self.lock();
      if (expired && call != nullptr) static_cast<StreamedGenerate*>(call.get())->OnGraceOver();
    });
    // An alarm is destroyed where no lock is held: gRPC may run its function there.
    {
      const MutexLock lock(mu_);
      if (grpc_call_ != nullptr) alarm_.swap(alarm);
    }
  }
  void Drop() override {
    CallReference call;
    {
      const MutexLock lock(mu_);
      if (grpc_call_ == nullptr) return;  // done in the meantime
      call = Reference(grpc_call_.get());
    }
    grpc_call_cancel(call.get(), nullptr);
  }

  const RpcContext& rpc_;
  // Constant once the request is submitted.
  const ReadyModel* model_ = nullptr;
  GenerateCall call_;
  std::optional<CallRecord> record_;  // from the request until gRPC is done with the call

  Mutex mu_;
  CallReference grpc_call_ ABSL_GUARDED_BY(mu_);  // null once gRPC is done with it
  std::unique_ptr<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

InferenceService::InferenceService(const RpcContext& rpc) : rpc_(rpc) {
  Serve("/ddl.v1.InferenceService/Generate", [this](grpc::CallbackServerContext* context) {
    return UnaryGenerate::Start(rpc_, context);
  });
  Serve("/ddl.v1.InferenceService/GenerateStream", [this](grpc::CallbackServerContext* context) {
    return StreamedGenerate::Start(rpc_, context);
  });
  Serve("/ddl.v1.InferenceService/Embed",
        [this](grpc::CallbackServerContext* context) { return UnaryEmbed::Start(rpc_, context); });
  Serve("/ddl.v1.InferenceService/Score",
        [this](grpc::CallbackServerContext* context) { return UnaryScore::Start(rpc_, context); });
  Serve("/ddl.v1.InferenceService/Tokenize", [this](grpc::CallbackServerContext* context) {
    return AnswerAtOnce<v1::TokenizeRequest>(
        rpc_, Method::kTokenize, context,
        [this](const v1::TokenizeRequest& tokenize) -> absl::StatusOr<v1::TokenizeResponse> {
          const absl::StatusOr<const ReadyModel*> model = FindModel(rpc_, tokenize.model());
          if (!model.ok()) return model.status();
          auto lists = ParseTokenize(tokenize, (*model)->limits);
          if (!lists.ok()) return lists.status();
          return ToTokenizeResponse(*lists, *(*model)->tokenizer);
        });
  });
  Serve("/ddl.v1.InferenceService/Detokenize", [this](grpc::CallbackServerContext* context) {
    return AnswerAtOnce<v1::DetokenizeRequest>(
        rpc_, Method::kDetokenize, context,
        [this](const v1::DetokenizeRequest& detokenize) -> absl::StatusOr<v1::DetokenizeResponse> {
          const absl::StatusOr<const ReadyModel*> model = FindModel(rpc_, detokenize.model());
          if (!model.ok()) return model.status();
          const absl::StatusOr<DetokenizeCall> call = ParseDetokenize(detokenize, (*model)->limits);
          if (!call.ok()) return call.status();
          return ToDetokenizeResponse(*call, *(*model)->tokenizer);
        });
  });
}

}  // namespace ddl
