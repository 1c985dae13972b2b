#ifndef DDL_SERVER_RPC_H_
#define DDL_SERVER_RPC_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "model/check.h"
#include "server/engine/mutex.h"
#include "server/metrics.h"
#include "server/proto_conversion.h"
#include "server/reply_thread.h"
#include "server/request_parser.h"
#include "server/served_models.h"

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
};

// The books on one call, from its arrival to its destruction, which is after gRPC's last word.
class RpcRecord {
 public:
  // `model`: what the client asked for.
  RpcRecord(const RpcSurroundings& surroundings, Method method, std::string_view model);
  ~RpcRecord();

  RpcRecord(const RpcRecord&) = delete;
  RpcRecord& operator=(const RpcRecord&) = delete;

  // Counts the answer, once, and translates it. Call before handing it to gRPC: a client that
  // has its answer finds it in the metrics.
  grpc::Status Answer(const absl::Status& status);

 private:
  const RpcSurroundings& surroundings_;
  const Method method_;
  const std::string model_;  // the label
  const absl::Time start_ = absl::Now();
  const bool counted_;
  bool answered_ = false;
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

// Answers a unary call on the spot.
class ImmediateCall final : public grpc::ServerUnaryReactor {
 public:
  // Parses a Request, has `answer` make an absl::StatusOr<Response> of it, and finishes the
  // call with that.
  template <typename Request, typename AnswerFunction>
  static grpc::ServerUnaryReactor* Run(const RpcSurroundings& surroundings, Method method,
                                       const grpc::ByteBuffer& request_bytes,
                                       grpc::ByteBuffer* response_bytes,
                                       const AnswerFunction& answer) {
    Request request;
    const absl::Status parsed = ParseRequest(request_bytes, &request);
    auto* call = new ImmediateCall(surroundings, method, ModelAskedFor(request, parsed));
    absl::Status status = parsed;
    if (parsed.ok()) {
      auto response = answer(request);
      status = response.status();
      if (status.ok()) *response_bytes = ToBytes(*response);
    }
    call->Finish(call->record_.Answer(status));
    return call;
  }

  void OnDone() override { delete this; }

 private:
  ImmediateCall(const RpcSurroundings& surroundings, Method method, std::string_view model)
      : record_(surroundings, method, model) {}

  template <typename Request>
  static std::string ModelAskedFor(const Request& request, const absl::Status& parsed) {
    if (!parsed.ok()) return std::string(kUnknownModel);
    if constexpr (requires { request.model(); }) {
      return request.model();
    } else {
      return "";
    }
  }

  RpcRecord record_;
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_H_
