#ifndef DDL_SERVER_RPC_RECEIVED_CALL_H_
#define DDL_SERVER_RPC_RECEIVED_CALL_H_

#include <grpcpp/support/byte_buffer.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "server/conversion/api_calls.h"
#include "server/conversion/message_parser.h"
#include "server/rpc/call_metadata.h"
#include "server/rpc/rpc_context.h"

namespace ddl {

// A call as its handler finds it. Its key comes first: nothing of a call without one is parsed.
template <typename Request>
struct ReceivedCall {
  CallMetadata metadata;
  Request request;
  absl::Status status;  // UNAUTHENTICATED, or what ParseRequest says
  std::string model;    // what it asks for; kUnknownModel where that is not known
};

// Also gives the call its ids: those of its request come before those of its metadata.
template <typename Request>
ReceivedCall<Request> Receive(const RpcContext& rpc, CallMetadata metadata,
                              const grpc::ByteBuffer& request_bytes) {
  ReceivedCall<Request> call{.metadata = std::move(metadata),
                             .request = {},
                             .status = {},
                             .model = std::string(kUnknownModel)};
  call.status = call.metadata.caller.status();
  if (call.status.ok()) {
    call.status = ParseRequest(request_bytes, rpc.max_message_bytes, &call.request);
  }
  if (call.status.ok()) {
    if constexpr (requires { call.request.request_id(); }) {
      const std::string& own = call.request.request_id();
      if (own.empty()) {
        call.request.set_request_id(call.metadata.request_id);
      } else if (own.size() <= kMaxRequestIdBytes) {
        call.metadata.request_id = own;
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

}  // namespace ddl

#endif  // DDL_SERVER_RPC_RECEIVED_CALL_H_
