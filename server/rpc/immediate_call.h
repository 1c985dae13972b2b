#ifndef DDL_SERVER_RPC_IMMEDIATE_CALL_H_
#define DDL_SERVER_RPC_IMMEDIATE_CALL_H_

#include <grpcpp/grpcpp.h>

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "server/rpc/call_record.h"
#include "server/rpc/raw_service.h"
#include "server/rpc/received_call.h"

namespace ddl {

// Answers a unary call on the spot: `answer` makes an absl::StatusOr<Response> of a Request.
template <typename Request, typename AnswerFunction>
class ImmediateCall final : public OneMessageReactor {
 public:
  static OneMessageReactor* Start(const RpcContext& rpc, Method method,
                                  grpc::CallbackServerContext* context, AnswerFunction answer) {
    auto* call = new ImmediateCall(rpc, method, context, std::move(answer));
    call->Begin();
    return call;
  }

  void OnDone() override { delete this; }

 private:
  ImmediateCall(const RpcContext& rpc, Method method, grpc::CallbackServerContext* context,
                AnswerFunction answer)
      : OneMessageReactor(rpc, context), rpc_(rpc), method_(method), answer_(std::move(answer)) {}

  void OnRequest(CallMetadata metadata, grpc::CallbackServerContext* context,
                 const grpc::ByteBuffer& request_bytes) override {
    ReceivedCall<Request> received = Receive<Request>(rpc_, std::move(metadata), request_bytes);
    record_.emplace(rpc_, method_, std::move(received.metadata), received.model, context);
    absl::Status status = record_->Admit();
    if (status.ok()) status = received.status;
    if (status.ok()) {
      auto response = answer_(received.request);
      status = response.status();
      if (status.ok()) response_bytes_ = ToBytes(*response);
    }
    FinishWith(record_->Answer(status));
  }

  const RpcContext& rpc_;
  const Method method_;
  const AnswerFunction answer_;
  std::optional<CallRecord> record_;
};

template <typename Request, typename AnswerFunction>
OneMessageReactor* AnswerAtOnce(const RpcContext& rpc, Method method,
                                grpc::CallbackServerContext* context, AnswerFunction answer) {
  return ImmediateCall<Request, AnswerFunction>::Start(rpc, method, context, std::move(answer));
}

}  // namespace ddl

#endif  // DDL_SERVER_RPC_IMMEDIATE_CALL_H_
