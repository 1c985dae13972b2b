#ifndef DDL_SERVER_REQUEST_PARSER_H_
#define DDL_SERVER_REQUEST_PARSER_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"

namespace ddl {

// Parses a request's bytes into `message`. gRPC's own parsing would answer UNIMPLEMENTED, without
// a word, to a string that is not UTF-8; this says INVALID_ARGUMENT with the field's path.
// CANCELLED when there are none: the client went away after it had opened the call.
absl::Status ParseRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

}  // namespace ddl

#endif  // DDL_SERVER_REQUEST_PARSER_H_
