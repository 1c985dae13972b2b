#include "server/conversion/grpc_status.h"

#include <cstddef>
#include <string>
#include <utility>

#include "base/status_details.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/conversion/proto_time.h"

namespace ddl {
namespace {

constexpr char kErrorDomain[] = "ddl";
// Clients take 8 KiB of trailers by default, of which details are a third larger in base64.
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxDetailsBytes = 3072;

// `text` cut to at most `bytes`, at a character's start, with "..." where something is missing.
std::string Clip(const std::string& text, size_t bytes) {
  if (text.size() <= bytes) return text;
  size_t end = bytes - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = Clip(std::string(status.message()), kMaxMessageBytes);
  google::rpc::Status proto;
  proto.set_code(static_cast<int>(status.code()));
  proto.set_message(message);
  const StatusDetails details = DetailsOf(status);
  if (!details.reason.empty()) {
    google::rpc::ErrorInfo info;
    info.set_reason(details.reason);
    info.set_domain(kErrorDomain);
    info.mutable_metadata()->insert(details.metadata.begin(), details.metadata.end());
    proto.add_details()->PackFrom(info);
  }
  if (details.retry_after.has_value()) {
    google::rpc::RetryInfo info;
    SetDuration(*details.retry_after, info.mutable_retry_delay());
    proto.add_details()->PackFrom(info);
  }
  google::rpc::BadRequest bad_request;
  for (const FieldViolation& violation : details.field_violations) {
    google::rpc::BadRequest::FieldViolation added;
    added.set_field(violation.field);
    added.set_description(Clip(violation.description, kMaxMessageBytes));
    if (bad_request.ByteSizeLong() + added.ByteSizeLong() > kMaxDetailsBytes) break;
    *bad_request.add_field_violations() = std::move(added);
  }
  if (bad_request.field_violations_size() > 0) proto.add_details()->PackFrom(bad_request);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message,
                      proto.details_size() > 0 ? proto.SerializeAsString() : "");
}

}  // namespace ddl
