#include "bench/statistics.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ddl::bench {
namespace {

using testing::ElementsAre;

// Expected values are those of numpy.percentile.
TEST(StatisticsTest, Percentile) {
  struct Row {
    std::string name;
    std::vector<double> sorted;
    double fraction;
    double want;
  };
  std::vector<double> hundred_and_one, hundred;
  for (int i = 0; i <= 100; ++i) hundred_and_one.push_back(i);
  for (int i = 1; i <= 100; ++i) hundred.push_back(i);
  const std::vector<Row> rows = {
      {"one sample, least", {7.0}, 0.0, 7.0},
      {"one sample, middle", {7.0}, 0.5, 7.0},
      {"one sample, most", {7.0}, 1.0, 7.0},
      {"two samples, least", {1.0, 3.0}, 0.0, 1.0},
      {"two samples, between", {1.0, 3.0}, 0.5, 2.0},
      {"two samples, near the most", {1.0, 3.0}, 0.99, 2.98},
      {"two samples, most", {1.0, 3.0}, 1.0, 3.0},
      {"on a rank", hundred_and_one, 0.99, 99.0},
      {"between ranks", hundred, 0.99, 99.01},
      {"median of an even number", hundred, 0.5, 50.5},
      {"p90", hundred, 0.9, 90.1},
      {"ties", {2.0, 2.0, 2.0, 9.0}, 0.5, 2.0},
      {"negative", {-4.0, -2.0, 0.0}, 0.25, -3.0},
  };
  for (const Row& row : rows) {
    EXPECT_NEAR(Percentile(row.sorted, row.fraction), row.want, 1e-9) << row.name;
  }
}

TEST(StatisticsTest, SummaryOfUnsortedSamples) {
  const Summary summary = Summarize({5.0, 1.0, 4.0, 2.0, 8.0});
  EXPECT_EQ(summary.count, 5);
  EXPECT_DOUBLE_EQ(summary.mean, 4.0);
  EXPECT_DOUBLE_EQ(summary.min, 1.0);
  EXPECT_DOUBLE_EQ(summary.median, 4.0);
  EXPECT_DOUBLE_EQ(summary.p90, 6.8);
  EXPECT_DOUBLE_EQ(summary.p99, 7.88);
  EXPECT_DOUBLE_EQ(summary.max, 8.0);
}

TEST(StatisticsTest, SummaryOfNothing) { EXPECT_EQ(Summarize({}).count, 0); }

TEST(StatisticsTest, RatiosAreTakenWithinARound) {
  EXPECT_THAT(RatiosByRound({2.0, 30.0}, {1.0, 10.0}), ElementsAre(2.0, 3.0));
  EXPECT_THAT(RatiosByRound({}, {}), ElementsAre());
}

}  // namespace
}  // namespace ddl::bench
