#ifndef DDL_SERVER_RPC_CALL_METADATA_H_
#define DDL_SERVER_RPC_CALL_METADATA_H_

#include <grpcpp/grpcpp.h>

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "server/access/api_keys.h"
#include "server/telemetry/trace_context.h"

namespace ddl {

// Who makes a call, and what its metadata call it.
struct CallMetadata {
  std::string request_id;  // never empty
  std::optional<TraceContext> trace;
  std::string peer;  // "ipv4:127.0.0.1:4711"
  // UNAUTHENTICATED where the call's key is none of `keys`.
  absl::StatusOr<ApiKeys::Caller> caller = ApiKeys::Caller{};
};

// Reads authorization, x-request-id and traceparent. An id that is not fit to be sent back (more
// than kMaxRequestIdBytes, or other than visible ASCII) counts as none, and one is generated.
CallMetadata ReadCallMetadata(const grpc::CallbackServerContext& context, const ApiKeys& keys);

// Which metadata of an answer. With an initial part gRPC's clients take the call for answered, and
// do not try it again.
enum class AnswerPart { kInitial, kTrailing };

// Has the answer say x-request-id and, for a call in a trace, traceparent. Before the part is given
// to gRPC. An id that metadata cannot carry is left out.
void SendIds(const CallMetadata& metadata, AnswerPart part, grpc::CallbackServerContext* context);

}  // namespace ddl

#endif  // DDL_SERVER_RPC_CALL_METADATA_H_
