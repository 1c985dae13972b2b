#include "server/step_watchdog.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace ddl {
namespace {

// "+0 -1": the first model stalls, the second no longer does.
std::string Text(const std::vector<StepWatchdog::Change>& changes) {
  std::string text;
  for (const StepWatchdog::Change& change : changes) {
    absl::StrAppend(&text, text.empty() ? "" : " ", change.stalled ? "+" : "-", change.model);
  }
  return text;
}

TEST(StepWatchdogTest, NoticesEachChangeOnce) {
  struct Row {
    const char* name;
    std::vector<double> seconds;  // by model; the timeout is 60
    const char* changes;
    bool stalled;
  };
  const Row rows[] = {
      {"idle", {0, 0}, "", false},
      {"as long as a step may take", {60, 60}, "", false},
      {"longer", {60.001, 1}, "+0", true},
      {"still", {61, 2}, "", true},
      {"the other too", {90, 61}, "+1", true},
      {"the first comes back", {0, 70}, "-0", true},
      {"stalls again as the other comes back", {61, 59}, "+0 -1", true},
      {"both are well", {1, 0}, "-0", false},
      {"both at once", {61, 61}, "+0 +1", true},
  };
  StepWatchdog watchdog(absl::Seconds(60), 2);
  for (const Row& row : rows) {
    std::vector<absl::Duration> steps;
    for (const double seconds : row.seconds) steps.push_back(absl::Seconds(seconds));
    EXPECT_EQ(Text(watchdog.Look(steps)), row.changes) << row.name;
    EXPECT_EQ(watchdog.stalled(), row.stalled) << row.name;
  }
}

TEST(StepWatchdogTest, GivesAStepUpAfterTwiceTheTimeout) {
  const StepWatchdog watchdog(absl::Seconds(60), 1);
  EXPECT_FALSE(watchdog.IsHopeless(absl::Seconds(61)));
  EXPECT_FALSE(watchdog.IsHopeless(absl::Seconds(120)));
  EXPECT_TRUE(watchdog.IsHopeless(absl::Seconds(120) + absl::Nanoseconds(1)));
}

TEST(StepWatchdogTest, CanBeTurnedOff) {
  StepWatchdog watchdog(absl::InfiniteDuration(), 1);
  EXPECT_EQ(Text(watchdog.Look({absl::Hours(24 * 365)})), "");
  EXPECT_FALSE(watchdog.stalled());
  EXPECT_FALSE(watchdog.IsHopeless(absl::Hours(24 * 365)));
}

}  // namespace
}  // namespace ddl
