#include "server/net/connection_rate.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace ddl {
namespace {

// When the connections of one address that come at `times` have their turns; both in milliseconds.
// -1: refused.
std::vector<int64_t> Turns(ConnectionRate* rate, const std::string& address,
                           const std::vector<int64_t>& times) {
  std::vector<int64_t> turns;
  for (const int64_t time : times) {
    const auto turn = rate->Turn(address, absl::FromUnixMillis(time));
    turns.push_back(turn.has_value() ? absl::ToUnixMillis(*turn) : -1);
  }
  return turns;
}

TEST(ConnectionRateTest, Turns) {
  struct Row {
    const char* name;
    int per_second;
    std::vector<int64_t> times;
    std::vector<int64_t> turns;
  };
  const Row rows[] = {
      {"as many at once as come in a second", 4, {0, 0, 0, 0}, {0, 0, 0, 0}},
      {"then in turn, for two seconds", 2, {0, 0, 0, 0, 0, 0}, {0, 0, 500, 1000, 1500, 2000}},
      {"then none", 2, {0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 500, 1000, 1500, 2000, -1, -1}},
      {"the refused take no turn", 1, {0, 0, 0, 0, 999, 1000}, {0, 1000, 2000, -1, -1, 3000}},
      {"no faster than the rate",
       4,
       {0, 250, 500, 750, 1000, 1250},
       {0, 250, 500, 750, 1000, 1250}},
      {"all at once again after a second", 2, {0, 0, 1000, 1000}, {0, 0, 1000, 1000}},
      {"one again after its part of it", 2, {0, 0, 499, 1000}, {0, 0, 500, 1000}},
      {"any number", 0, {0, 0, 0, 1}, {0, 0, 0, 1}},
  };
  for (const Row& row : rows) {
    ConnectionRate rate(row.per_second, absl::Seconds(2));
    EXPECT_EQ(Turns(&rate, "a", row.times), row.turns) << row.name;
  }
}

TEST(ConnectionRateTest, AddressesHaveEachTheirOwn) {
  ConnectionRate rate(1, absl::ZeroDuration());
  EXPECT_EQ(Turns(&rate, "a", {0, 0}), (std::vector<int64_t>{0, -1}));
  EXPECT_EQ(Turns(&rate, "b", {0, 0}), (std::vector<int64_t>{0, -1}));
}

// Clients that come once and never again must leave nothing behind.
TEST(ConnectionRateTest, ForgetsAddresses) {
  ConnectionRate rate(10, absl::Seconds(1));
  for (int i = 0; i < 1000; ++i) {
    rate.Turn(absl::StrCat("address ", i), absl::FromUnixMillis(i));
  }
  Turns(&rate, "often", std::vector<int64_t>(20, 1000));
  rate.Turn("late", absl::FromUnixMillis(2500));
  EXPECT_EQ(rate.num_addresses(), 2U);  // "often" has turns until then
  rate.Turn("late", absl::FromUnixMillis(10000));
  EXPECT_EQ(rate.num_addresses(), 1U);
}

}  // namespace
}  // namespace ddl
