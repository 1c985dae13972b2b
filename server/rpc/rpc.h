#ifndef DDL_SERVER_RPC_RPC_H_
#define DDL_SERVER_RPC_RPC_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/impl/codegen/rpc_service_method.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>
#include <grpcpp/impl/codegen/service_type.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/check.h"
#include "base/mutex.h"
#include "server/access/api_keys.h"
#include "server/conversion/message_parser.h"
#include "server/conversion/proto_conversion.h"
#include "server/engine/request.h"
#include "server/models/served_models.h"
#include "server/rpc/call_metadata.h"
#include "server/rpc/reply_thread.h"
#include "server/telemetry/metrics.h"
#include "server/telemetry/request_log.h"

// What the services' calls have in common. The services take raw bytes from gRPC and parse them
// with ParseRequest.

namespace ddl {

// Counts calls that gRPC is not done with, so that a stopping server can wait for their answers
// to leave. Health checks and reflection are not counted. Thread-safe.
class ActiveCalls {
 public:
  // False when it no longer counts; then no Leave follows.
  bool Enter();
  void Leave();
  // Calls that arrive from now on are not counted.
  void StopCounting();
  // Waits until no counted call is left, or until `deadline`, or until Interrupt. True when none
  // is left.
  bool WaitUntilNone(absl::Time deadline);
  void Interrupt();

 private:
  Mutex mu_;
  CondVar changed_;
  bool counting_ ABSL_GUARDED_BY(mu_) = true;
  bool interrupted_ ABSL_GUARDED_BY(mu_) = false;
  int64_t count_ ABSL_GUARDED_BY(mu_) = 0;
};

// What calls need of the server. All of it outlives them.
struct RpcSurroundings {
  ServedModels& models;
  Metrics& metrics;
  ActiveCalls& active;
  ReplyThread& replies;
  ApiKeys& keys;
  RequestLog& log;
  int64_t max_message_bytes;  // of a request
};

// A call as its handler finds it. Its key comes first: nothing of a call without one is parsed.
template <typename Request>
struct ReceivedCall {
  CallOrigin origin;
  Request request;
  absl::Status status;  // UNAUTHENTICATED, or what ParseRequest says
  std::string model;    // what it asks for; kUnknownModel where that is not known
};

// Also gives the call its ids: those of its request come before those of its metadata.
template <typename Request>
ReceivedCall<Request> Receive(const RpcSurroundings& surroundings, CallOrigin origin,
                              const grpc::ByteBuffer& request_bytes) {
  ReceivedCall<Request> call{.origin = std::move(origin),
                             .request = {},
                             .status = {},
                             .model = std::string(kUnknownModel)};
  call.status = call.origin.caller.status();
  if (call.status.ok()) {
    call.status = ParseRequest(request_bytes, surroundings.max_message_bytes, &call.request);
  }
  if (call.status.ok()) {
    if constexpr (requires { call.request.request_id(); }) {
      const std::string& own = call.request.request_id();
      if (own.empty()) {
        call.request.set_request_id(call.origin.request_id);
      } else if (own.size() <= kMaxRequestIdBytes) {
        call.origin.request_id = own;
      }
    }
    if constexpr (requires { call.request.model(); }) {
      call.model = call.request.model();
    } else {
      call.model.clear();
    }
  }
  return call;
}

// The books on one call, from its arrival to its destruction, which is after gRPC's last word. Not
// thread-safe.
class RpcRecord {
 public:
  // `model`: what the client asked for. `context` outlives the answer.
  RpcRecord(const RpcSurroundings& surroundings, Method method, CallOrigin origin,
            std::string_view model, grpc::CallbackServerContext* context);
  ~RpcRecord();

  RpcRecord(const RpcRecord&) = delete;
  RpcRecord& operator=(const RpcRecord&) = delete;

  // What stands against the call, apart from its request: UNAUTHENTICATED, or RESOURCE_EXHAUSTED
  // where its key has made too many. Once, before anything else.
  absl::Status Admit();
  // PERMISSION_DENIED where its key may not ask for this.
  absl::Status CheckRight(Priority priority) const;
  // Takes `tokens` of what its key may use; RESOURCE_EXHAUSTED where it has used them. At most
  // once. What the engine did not use goes back with the answer.
  absl::Status TakeTokens(int64_t tokens);
  // The engine has ended the call's request.
  void SetOutcome(const RequestUsage& usage, const RequestTimings& timings);

  // Before the first part of an answer of several: its initial metadata say the call's ids.
  void BeginAnswer();
  // Counts the answer, once, writes it to the log, and translates it. A refusal that says when to
  // come back says so to gRPC's own retries as well, and has no initial metadata, so that they
  // happen. Call before handing it to gRPC: a client that has its answer finds it in the metrics.
  grpc::Status Answer(const absl::Status& status);

 private:
  absl::Status CountRefusal(absl::Status status) const;
  void Log(const absl::Status& status, absl::Duration duration) const;

  const RpcSurroundings& surroundings_;
  const Method method_;
  const CallOrigin origin_;
  const std::string model_;  // the label
  grpc::CallbackServerContext* const context_;
  const absl::Time start_ = absl::Now();
  const bool counted_;
  bool begun_ = false;
  bool answered_ = false;
  int64_t taken_tokens_ = 0;
  std::optional<RequestUsage> usage_;
  RequestTimings timings_;
};

template <typename Message>
grpc::ByteBuffer ToBytes(const Message& message) {
  grpc::ByteBuffer bytes;
  bool own_buffer = false;
  const grpc::Status status =
      grpc::SerializationTraits<Message>::Serialize(message, &bytes, &own_buffer);
  DDL_CHECK(status.ok(), "a response that cannot be serialized");
  return bytes;
}

// A call of one message, whatever its answer. To gRPC it is a stream both ways, which looks the
// same on the wire: gRPC reads a unary call's message to its end, however long that claims to be,
// before it tells of the call. This one is not read before its key is known to be good.
class OneMessageReactor : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  void OnReadDone(bool /*ok*/) final { OnRequest(std::move(origin_), context_, request_bytes_); }

 protected:
  OneMessageReactor(const RpcSurroundings& surroundings, grpc::CallbackServerContext* context)
      : context_(context), origin_(ReadOrigin(*context, surroundings.keys)) {}

  // In the handler, once.
  void Begin() {
    if (origin_.caller.ok()) {
      StartRead(&request_bytes_);
    } else {
      OnRequest(std::move(origin_), context_, request_bytes_);
    }
  }
  // For Receive. The bytes are invalid where none were read. gRPC's other calls may come at the
  // same time, but for OnDone.
  virtual void OnRequest(CallOrigin origin, grpc::CallbackServerContext* context,
                         const grpc::ByteBuffer& request_bytes) = 0;

  // Ends a call that is unary for its client.
  void FinishWith(const grpc::Status& status) {
    if (status.ok()) {
      StartWriteAndFinish(&response_bytes_, grpc::WriteOptions(), status);
    } else {
      Finish(status);
    }
  }

  grpc::ByteBuffer response_bytes_;  // for FinishWith

 private:
  grpc::CallbackServerContext* const context_;
  CallOrigin origin_;
  grpc::ByteBuffer request_bytes_;
};

// A service whose calls are OneMessageReactors.
class OneMessageService : public grpc::Service {
 protected:
  using Handler = std::function<OneMessageReactor*(grpc::CallbackServerContext*)>;

  // `path` lives as long as the program: "/ddl.v1.ModelService/ListModels".
  void Serve(const char* path, Handler handler) {
    AddMethod(new grpc::internal::RpcServiceMethod(path, grpc::internal::RpcMethod::BIDI_STREAMING,
                                                   nullptr));
    MarkMethodRawCallback(
        num_methods_++, new grpc::internal::CallbackBidiHandler<grpc::ByteBuffer, grpc::ByteBuffer>(
                            std::move(handler)));
  }

 private:
  int num_methods_ = 0;
};

// Answers a unary call on the spot: `answer` makes an absl::StatusOr<Response> of a Request.
template <typename Request, typename AnswerFunction>
class ImmediateCall final : public OneMessageReactor {
 public:
  static OneMessageReactor* Start(const RpcSurroundings& surroundings, Method method,
                                  grpc::CallbackServerContext* context, AnswerFunction answer) {
    auto* call = new ImmediateCall(surroundings, method, context, std::move(answer));
    call->Begin();
    return call;
  }

  void OnDone() override { delete this; }

 private:
  ImmediateCall(const RpcSurroundings& surroundings, Method method,
                grpc::CallbackServerContext* context, AnswerFunction answer)
      : OneMessageReactor(surroundings, context),
        surroundings_(surroundings),
        method_(method),
        answer_(std::move(answer)) {}

  void OnRequest(CallOrigin origin, grpc::CallbackServerContext* context,
                 const grpc::ByteBuffer& request_bytes) override {
    ReceivedCall<Request> received =
        Receive<Request>(surroundings_, std::move(origin), request_bytes);
    record_.emplace(surroundings_, method_, std::move(received.origin), received.model, context);
    absl::Status status = record_->Admit();
    if (status.ok()) status = received.status;
    if (status.ok()) {
      auto response = answer_(received.request);
      status = response.status();
      if (status.ok()) response_bytes_ = ToBytes(*response);
    }
    FinishWith(record_->Answer(status));
  }

  const RpcSurroundings& surroundings_;
  const Method method_;
  const AnswerFunction answer_;
  std::optional<RpcRecord> record_;
};

template <typename Request, typename AnswerFunction>
OneMessageReactor* AnswerAtOnce(const RpcSurroundings& surroundings, Method method,
                                grpc::CallbackServerContext* context, AnswerFunction answer) {
  return ImmediateCall<Request, AnswerFunction>::Start(surroundings, method, context,
                                                       std::move(answer));
}

}  // namespace ddl

#endif  // DDL_SERVER_RPC_RPC_H_
