#ifndef DDL_SERVER_RPC_RAW_SERVICE_H_
#define DDL_SERVER_RPC_RAW_SERVICE_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/impl/codegen/rpc_service_method.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>
#include <grpcpp/impl/codegen/service_type.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <utility>

#include "base/check.h"
#include "server/rpc/call_metadata.h"
#include "server/rpc/rpc_context.h"

// Services that take and give raw bytes: the only place that uses what gRPC calls internal.

namespace ddl {

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
// before it announces the call. This one is not read before its key is known to be good.
class OneMessageReactor : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  void OnReadDone(bool /*ok*/) final { OnRequest(std::move(metadata_), context_, request_bytes_); }

 protected:
  OneMessageReactor(const RpcContext& rpc, grpc::CallbackServerContext* context)
      : context_(context), metadata_(ReadCallMetadata(*context, rpc.keys)) {}

  // In the handler, once.
  void Begin() {
    if (metadata_.caller.ok()) {
      StartRead(&request_bytes_);
    } else {
      OnRequest(std::move(metadata_), context_, request_bytes_);
    }
  }
  // For Receive. The bytes are invalid where none were read. gRPC's other calls may come at the
  // same time, but for OnDone.
  virtual void OnRequest(CallMetadata metadata, grpc::CallbackServerContext* context,
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
  CallMetadata metadata_;
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

}  // namespace ddl

#endif  // DDL_SERVER_RPC_RAW_SERVICE_H_
