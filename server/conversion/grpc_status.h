#ifndef DDL_SERVER_CONVERSION_GRPC_STATUS_H_
#define DDL_SERVER_CONVERSION_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace ddl {

// The code and message of `status`, with its details as google.rpc.Status for the trailer
// grpc-status-details-bin. Long texts are cut: HTTP/2 headers are small.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_GRPC_STATUS_H_
