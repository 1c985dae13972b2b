#include "server/engine/step_time_model.h"

#include <gtest/gtest.h>

namespace ddl {
namespace {

// A device that takes 2 ms, 0.1 ms for each decode and 0.05 ms for each position beside them.
absl::Duration TimeOf(int32_t decodes, int32_t prefill_tokens) {
  return absl::Microseconds(2000 + 100 * decodes + 50 * prefill_tokens);
}

TEST(StepTimeModelTest, GivesABudgetThatKeepsTheSlowdown) {
  StepTimeModel model;
  for (int i = 0; i < 200; ++i) {
    const int32_t decodes = 1 + i % 20;
    model.Record(decodes, 0, TimeOf(decodes, 0));
    model.Record(decodes, 30, TimeOf(decodes, 30));
  }
  struct Row {
    int32_t decodes;
    double max_slowdown;
    int32_t budget;
  };
  const Row rows[] = {{10, 2.0, 60}, {10, 1.5, 30},  {20, 2.0, 80},
                      {1, 2.0, 42},  {64, 2.0, 168}, {10, 1.0, 1}};
  for (const Row& row : rows) {
    const auto budget = model.PrefillBudget(row.decodes, row.max_slowdown);
    ASSERT_TRUE(budget.has_value());
    EXPECT_NEAR(*budget, row.budget, 1) << row.decodes << " decodes, " << row.max_slowdown;
  }
}

TEST(StepTimeModelTest, KnowsNothingBeforeItHasSeenBothKindsOfSteps) {
  StepTimeModel model;
  EXPECT_FALSE(model.PrefillBudget(1, 2.0).has_value());
  model.Record(0, 500, absl::Seconds(1));  // no decodes: says nothing of what they bear
  model.Record(4, 8, TimeOf(4, 8));        // beside decodes whose own time is unknown
  EXPECT_FALSE(model.PrefillBudget(1, 2.0).has_value());
  model.Record(4, 0, TimeOf(4, 0));
  EXPECT_FALSE(model.PrefillBudget(4, 2.0).has_value());
  model.Record(4, 8, TimeOf(4, 8));
  EXPECT_NEAR(*model.PrefillBudget(4, 2.0), 48, 1);
}

TEST(StepTimeModelTest, FollowsADeviceThatBecomesSlower) {
  StepTimeModel model;
  for (int i = 0; i < 100; ++i) {
    model.Record(8, 0, TimeOf(8, 0));
    model.Record(8, 20, TimeOf(8, 20));
  }
  for (int i = 0; i < 300; ++i) {
    model.Record(8, 0, TimeOf(8, 0));
    model.Record(8, 20, TimeOf(8, 0) + 4 * absl::Microseconds(50 * 20));
  }
  EXPECT_NEAR(*model.PrefillBudget(8, 2.0), 14, 1);
}

TEST(StepTimeModelTest, PositionsThatCostNothingAreNotRationed) {
  StepTimeModel model;
  model.Record(8, 0, absl::Milliseconds(5));
  model.Record(8, 100, absl::Milliseconds(4));
  EXPECT_GT(*model.PrefillBudget(8, 2.0), 1'000'000);
}

TEST(StepTimeModelTest, AClockThatStandsStillTeachesNothing) {
  StepTimeModel model;
  model.Record(8, 0, absl::ZeroDuration());
  model.Record(8, 8, absl::ZeroDuration());
  EXPECT_FALSE(model.PrefillBudget(8, 2.0).has_value());
}

}  // namespace
}  // namespace ddl
