#ifndef DDL_SERVER_CONVERSION_MESSAGE_PARSER_H_
#define DDL_SERVER_CONVERSION_MESSAGE_PARSER_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>

#include "absl/status/status.h"

namespace ddl {

// Parses a request's bytes into `message`. gRPC's own parsing would answer UNIMPLEMENTED, without
// a word, to a string that is not UTF-8; this says INVALID_ARGUMENT with the field's path.
// CANCELLED when there are none: the client went away after it had opened the call.
// RESOURCE_EXHAUSTED when there are more than `max_bytes`: gRPC's own bound would end the call
// without a word to the accounting.
absl::Status ParseRequest(const grpc::ByteBuffer& bytes, int64_t max_bytes,
                          google::protobuf::Message* message);

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_MESSAGE_PARSER_H_
