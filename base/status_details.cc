#include "base/status_details.h"

#include <cstdint>
#include <cstdlib>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "base/check.h"

namespace ddl {
namespace {

constexpr char kPayloadUrl[] = "ddl.StatusDetails";

// The payload is a row of strings, each as "<length>:<bytes>": reason, the retry time in
// nanoseconds (empty: none), the number of metadata and their names and values, then field and
// description of each violation. It never leaves the
// process, so a payload that does not parse is our own mistake.
void AppendString(const std::string& value, std::string* payload) {
  *payload += std::to_string(value.size());
  *payload += ':';
  *payload += value;
}

std::string TakeString(std::string_view* payload) {
  const size_t colon = payload->find(':');
  size_t length = 0;
  DDL_CHECK(colon != std::string_view::npos &&
                absl::SimpleAtoi(absl::string_view(payload->data(), colon), &length) &&
                length <= payload->size() - colon - 1,
            "malformed status payload");
  std::string value(payload->substr(colon + 1, length));
  payload->remove_prefix(colon + 1 + length);
  return value;
}

}  // namespace

absl::Status WithDetails(absl::Status status, const StatusDetails& details) {
  std::string payload;
  AppendString(details.reason, &payload);
  AppendString(details.retry_after.has_value()
                   ? std::to_string(absl::ToInt64Nanoseconds(*details.retry_after))
                   : "",
               &payload);
  AppendString(std::to_string(details.metadata.size()), &payload);
  for (const auto& [name, value] : details.metadata) {
    AppendString(name, &payload);
    AppendString(value, &payload);
  }
  for (const FieldViolation& violation : details.field_violations) {
    AppendString(violation.field, &payload);
    AppendString(violation.description, &payload);
  }
  status.SetPayload(kPayloadUrl, absl::Cord(payload));
  return status;
}

StatusDetails DetailsOf(const absl::Status& status) {
  StatusDetails details;
  const auto cord = status.GetPayload(kPayloadUrl);
  if (!cord.has_value()) return details;
  const std::string payload(*cord);
  std::string_view rest = payload;
  details.reason = TakeString(&rest);
  if (const std::string nanoseconds = TakeString(&rest); !nanoseconds.empty()) {
    details.retry_after = absl::Nanoseconds(std::strtoll(nanoseconds.c_str(), nullptr, 10));
  }
  const long num_metadata = std::strtol(TakeString(&rest).c_str(), nullptr, 10);
  for (long i = 0; i < num_metadata; ++i) {
    std::string name = TakeString(&rest);
    details.metadata[std::move(name)] = TakeString(&rest);
  }
  while (!rest.empty()) {
    std::string field = TakeString(&rest);
    std::string description = TakeString(&rest);
    details.field_violations.push_back({std::move(field), std::move(description)});
  }
  return details;
}

absl::Status InvalidField(std::string_view field, std::string_view description) {
  StatusDetails details;
  details.field_violations.push_back({std::string(field), std::string(description)});
  return WithDetails(
      absl::InvalidArgumentError(std::string(field) + ": " + std::string(description)), details);
}

}  // namespace ddl
