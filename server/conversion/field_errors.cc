#include "server/conversion/field_errors.h"

#include "absl/strings/str_join.h"

namespace ddl {

absl::Status FieldErrors::status() const {
  if (violations_.empty()) return absl::OkStatus();
  const std::string message =
      absl::StrJoin(violations_, "; ", [](std::string* out, const FieldViolation& violation) {
        absl::StrAppend(out, violation.field, ": ", violation.description);
      });
  StatusDetails details;
  details.field_violations = violations_;
  return WithDetails(absl::InvalidArgumentError(message), details);
}

}  // namespace ddl
