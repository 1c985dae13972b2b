#include "server/step_watchdog.h"

#include <algorithm>

#include "base/check.h"

namespace ddl {

std::vector<StepWatchdog::Change> StepWatchdog::Look(
    absl::Span<const absl::Duration> running_steps) {
  DDL_CHECK(running_steps.size() == stalled_.size(), "a step of each model");
  std::vector<Change> changes;
  for (size_t model = 0; model < stalled_.size(); ++model) {
    const bool stalled = running_steps[model] > step_timeout_;
    if (stalled == stalled_[model]) continue;
    stalled_[model] = stalled;
    changes.push_back({.model = model, .stalled = stalled});
  }
  return changes;
}

bool StepWatchdog::stalled() const { return std::ranges::find(stalled_, true) != stalled_.end(); }

}  // namespace ddl
