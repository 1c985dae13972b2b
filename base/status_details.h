#ifndef DDL_BASE_STATUS_DETAILS_H_
#define DDL_BASE_STATUS_DETAILS_H_

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace ddl {

struct FieldViolation {
  std::string field;        // path in the request, e.g. "sampling.temperature"
  std::string description;  // what is allowed, what was found
};

// What a client can act on beside the code and message. Travels inside absl::Status as a
// payload and leaves the server as google.rpc.ErrorInfo, RetryInfo and BadRequest.
struct StatusDetails {
  std::string reason = {};  // "QUEUE_FULL", "TOKENS_FULL", "TOO_LARGE", ...; empty: none
  std::optional<absl::Duration> retry_after = {};
  std::vector<FieldViolation> field_violations = {};
  std::map<std::string, std::string> metadata = {};  // numbers behind the reason, by name
};

// `status` with `details`, in place of any it had. OK statuses carry none.
absl::Status WithDetails(absl::Status status, const StatusDetails& details);
// Empty when the status carries none.
StatusDetails DetailsOf(const absl::Status& status);

// INVALID_ARGUMENT about one field of the request; the message is "field: description".
absl::Status InvalidField(std::string_view field, std::string_view description);

}  // namespace ddl

#endif  // DDL_BASE_STATUS_DETAILS_H_
