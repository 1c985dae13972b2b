#include "server/engine/pooling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace ddl {
namespace {

using Vectors = std::vector<std::vector<float>>;

TEST(PoolerTest, Pools) {
  const std::vector<float> rows = {1, -2, 2, 3, 5, -7, -1, 0, 8};  // [3, 3]
  struct Row {
    const char* name;
    PoolingParams params;
    Vectors expected;
  };
  const Row kRows[] = {
      {"last", {Pooling::kLastToken, false, 0}, {{-1, 0, 8}}},
      {"mean", {Pooling::kMean, false, 0}, {{1, 1, 1}}},
      {"weighted mean", {Pooling::kWeightedMean, false, 0}, {{4.0f / 6, 8.0f / 6, 12.0f / 6}}},
      {"max", {Pooling::kMax, false, 0}, {{3, 5, 8}}},
      {"none", {Pooling::kNone, false, 0}, {{1, -2, 2}, {3, 5, -7}, {-1, 0, 8}}},
      {"cut to 2", {Pooling::kMax, false, 2}, {{3, 5}}},
      {"cut to all", {Pooling::kMax, false, 3}, {{3, 5, 8}}},
      {"normalised",
       {Pooling::kLastToken, true, 0},
       {{-1 / std::sqrt(65.0f), 0, 8 / std::sqrt(65.0f)}}},
      {"normalised after the cut", {Pooling::kMax, true, 1}, {{1}}},
      {"each normalised", {Pooling::kNone, true, 1}, {{1}, {1}, {-1}}},
  };
  for (const Row& row : kRows) {
    SCOPED_TRACE(row.name);
    Pooler pooler(row.params, 3);
    pooler.Add(rows);
    const Vectors vectors = pooler.Take();
    ASSERT_EQ(vectors.size(), row.expected.size());
    for (size_t i = 0; i < vectors.size(); ++i) {
      EXPECT_THAT(vectors[i], testing::Pointwise(testing::FloatEq(), row.expected[i]));
    }
  }
}

TEST(PoolerTest, AZeroVectorStaysZero) {
  Pooler pooler({Pooling::kMean, true, 0}, 2);
  pooler.Add({0, 0, 0, 0});
  EXPECT_THAT(pooler.Take(), testing::ElementsAre(testing::ElementsAre(0, 0)));
}

TEST(PoolerTest, TheMaximumOfNegativesIsNegative) {
  Pooler pooler({Pooling::kMax, false, 0}, 1);
  pooler.Add({-3, -2});
  EXPECT_THAT(pooler.Take(), testing::ElementsAre(testing::ElementsAre(-2)));
}

TEST(PoolerTest, AsksForTheRowsItNeeds) {
  for (const Pooling pooling :
       {Pooling::kMean, Pooling::kMax, Pooling::kWeightedMean, Pooling::kNone}) {
    const Pooler pooler({pooling, false, 0}, 1);
    EXPECT_EQ(pooler.RowsNeeded(false), Rows::kAll);
    EXPECT_EQ(pooler.RowsNeeded(true), Rows::kAll);
  }
  const Pooler last({Pooling::kLastToken, false, 0}, 1);
  EXPECT_EQ(last.RowsNeeded(false), Rows::kNone);
  EXPECT_EQ(last.RowsNeeded(true), Rows::kLast);
}

// To the bit: sums of such different sizes come out otherwise in any other order.
TEST(PoolerTest, DoesNotDependOnTheChunks) {
  constexpr int kRows = 64, kHidden = 5;
  std::mt19937 random(1);
  std::vector<float> rows;
  for (int i = 0; i < kRows * kHidden; ++i) {
    rows.push_back(
        std::ldexp(static_cast<float>(random()) / 1e9f - 2, static_cast<int>(random() % 60)));
  }
  for (const Pooling pooling :
       {Pooling::kMean, Pooling::kMax, Pooling::kWeightedMean, Pooling::kNone}) {
    const PoolingParams params = {pooling, true, 0};
    Pooler whole(params, kHidden);
    whole.Add(rows);
    const Vectors expected = whole.Take();
    for (const int chunk : {1, 3, 7, 63}) {
      Pooler pooler(params, kHidden);
      pooler.Add(absl::MakeSpan(rows).subspan(0, 10 * kHidden));
      pooler.Reset();  // preempted, and computed again
      for (int row = 0; row < kRows; row += chunk) {
        pooler.Add(absl::MakeSpan(rows).subspan(row * kHidden, chunk * kHidden));
      }
      EXPECT_EQ(pooler.Take(), expected) << "chunks of " << chunk;
    }
  }
}

}  // namespace
}  // namespace ddl
