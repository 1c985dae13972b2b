#include "server/conversion/grpc_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_details.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ddl {
namespace {

google::rpc::Status Details(const grpc::Status& status) {
  google::rpc::Status proto;
  EXPECT_TRUE(proto.ParseFromString(status.error_details()));
  return proto;
}

TEST(GrpcStatusTest, KeepsCodeAndMessage) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  const grpc::Status status = ToGrpcStatus(absl::NotFoundError("no such model"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "no such model");
  EXPECT_EQ(status.error_details(), "") << "nothing to add";
}

TEST(GrpcStatusTest, CarriesReasonAndRetry) {
  StatusDetails details;
  details.reason = "QUEUE_FULL";
  details.metadata = {{"waiting", "3"}};
  details.retry_after = absl::Milliseconds(1250);
  const grpc::Status status =
      ToGrpcStatus(WithDetails(absl::ResourceExhaustedError("full"), details));
  const google::rpc::Status proto = Details(status);
  EXPECT_EQ(proto.code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  ASSERT_EQ(proto.details_size(), 2);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(proto.details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "QUEUE_FULL");
  EXPECT_EQ(info.domain(), "ddl");
  EXPECT_EQ(info.metadata().at("waiting"), "3");
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(proto.details(1).UnpackTo(&retry));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 250'000'000);
}

// Clients take 8 KiB of trailers, and end a call with INTERNAL that brings more.
TEST(GrpcStatusTest, FitsTheTrailers) {
  StatusDetails details;
  for (int i = 0; i < 1000; ++i) {
    details.field_violations.push_back({absl::StrCat("inputs[", i, "]"), std::string(90, 'x')});
  }
  details.field_violations.front().description = std::string(5000, 'y');
  const grpc::Status status =
      ToGrpcStatus(WithDetails(absl::InvalidArgumentError(std::string(100'000, 'z')), details));
  EXPECT_EQ(status.error_message().size(), 1024u);
  EXPECT_LT(status.error_details().size(), 5000u);
  google::rpc::BadRequest bad;
  ASSERT_TRUE(Details(status).details(0).UnpackTo(&bad));
  EXPECT_GT(bad.field_violations_size(), 5);
  EXPECT_EQ(bad.field_violations(0).field(), "inputs[0]");
}

TEST(GrpcStatusTest, CutsBetweenCharacters) {
  // Two bytes each, so that 1021 is in the middle of one.
  std::string umlauts;
  for (int i = 0; i < 600; ++i) umlauts += "\xC3\xA4";
  const std::string message = ToGrpcStatus(absl::InternalError(umlauts)).error_message();
  EXPECT_EQ(message, umlauts.substr(0, 1020) + "...");
}

}  // namespace
}  // namespace ddl
