#ifndef DDL_SERVER_CONVERSION_PROTO_TIME_H_
#define DDL_SERVER_CONVERSION_PROTO_TIME_H_

#include <google/protobuf/duration.pb.h>

#include <chrono>

#include "absl/time/time.h"

namespace ddl {

void SetDuration(absl::Duration duration, google::protobuf::Duration* proto);

// The RPC deadline as gRPC gives it; InfiniteFuture for none.
absl::Time ToDeadline(std::chrono::system_clock::time_point deadline);

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_PROTO_TIME_H_
