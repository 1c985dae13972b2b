#ifndef DDL_SERVER_CONVERSION_FIELD_ERRORS_H_
#define DDL_SERVER_CONVERSION_FIELD_ERRORS_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_details.h"

namespace ddl {

// Collects what is wrong with a request's fields.
class FieldErrors {
 public:
  void Add(std::string field, std::string description) {
    violations_.push_back({std::move(field), std::move(description)});
  }

  // An allowed range and the value found, for numbers of any type.
  template <typename Number>
  void AddRange(std::string field, const char* allowed, Number value) {
    Add(std::move(field), absl::StrCat("must be ", allowed, ", not ", value));
  }

  bool empty() const { return violations_.empty(); }

  // OK when nothing is wrong, else INVALID_ARGUMENT with all violations.
  absl::Status status() const;

 private:
  std::vector<FieldViolation> violations_;
};

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_FIELD_ERRORS_H_
