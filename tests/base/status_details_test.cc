#include "base/status_details.h"

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace ddl {
namespace {

TEST(StatusDetailsTest, SurviveTheStatus) {
  struct Row {
    const char* name;
    StatusDetails details;
  };
  const Row rows[] = {
      {"nothing", {}},
      {"reason only", {.reason = "TOO_LARGE"}},
      {"retry at once", {.reason = "QUEUE_FULL", .retry_after = absl::ZeroDuration()}},
      {"retry in a fraction", {.retry_after = absl::Milliseconds(1234)}},
      {"a violation", {.field_violations = {{"sampling.top_p", "must be in (0, 1], found 2"}}}},
      {"separators and empty strings inside",
       {.reason = "3:a:", .field_violations = {{"", "1:"}, {std::string("\0:\n", 3), ""}}}},
      {"metadata",
       {.reason = "TOO_LARGE",
        .field_violations = {{"a", "b"}},
        .metadata = {{"", "2:"}, {"needed_tokens", "7"}}}},
  };
  for (const Row& row : rows) {
    const absl::Status status = WithDetails(absl::ResourceExhaustedError("busy"), row.details);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << row.name;
    EXPECT_EQ(status.message(), "busy") << row.name;
    const StatusDetails read = DetailsOf(status);
    EXPECT_EQ(read.reason, row.details.reason) << row.name;
    EXPECT_EQ(read.retry_after, row.details.retry_after) << row.name;
    EXPECT_EQ(read.metadata, row.details.metadata) << row.name;
    ASSERT_EQ(read.field_violations.size(), row.details.field_violations.size()) << row.name;
    for (size_t i = 0; i < read.field_violations.size(); ++i) {
      EXPECT_EQ(read.field_violations[i].field, row.details.field_violations[i].field) << row.name;
      EXPECT_EQ(read.field_violations[i].description, row.details.field_violations[i].description)
          << row.name;
    }
  }
}

TEST(StatusDetailsTest, AbsentDetailsAreEmpty) {
  for (const absl::Status& status : {absl::OkStatus(), absl::InternalError("plain")}) {
    const StatusDetails details = DetailsOf(status);
    EXPECT_EQ(details.reason, "") << status;
    EXPECT_EQ(details.retry_after, std::nullopt) << status;
    EXPECT_TRUE(details.field_violations.empty()) << status;
  }
}

TEST(StatusDetailsTest, InvalidFieldNamesTheFieldTwice) {
  const absl::Status status = InvalidField("sampling.top_k", "must be -1 or at least 1, found 0");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "sampling.top_k: must be -1 or at least 1, found 0");
  const StatusDetails details = DetailsOf(status);
  ASSERT_EQ(details.field_violations.size(), 1u);
  EXPECT_EQ(details.field_violations[0].field, "sampling.top_k");
  EXPECT_EQ(details.field_violations[0].description, "must be -1 or at least 1, found 0");
}

}  // namespace
}  // namespace ddl
