#ifndef DDL_SERVER_STEP_WATCHDOG_H_
#define DDL_SERVER_STEP_WATCHDOG_H_

#include <cstddef>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"

namespace ddl {

// Decides from how long each engine's present step has been running whether the server can be
// trusted with calls. A step that does not come back (a hanging device, a deadlock) answers
// nobody, while health, which other threads answer, would go on saying SERVING. Pure policy: it
// has no thread and no clock. Not thread-safe, but for IsHopeless.
class StepWatchdog {
 public:
  // A model whose step began or ceased to be too long.
  struct Change {
    size_t model = 0;
    bool stalled = false;
  };

  // `step_timeout`: the longest that a step may take; infinite: any.
  StepWatchdog(absl::Duration step_timeout, size_t num_models)
      : step_timeout_(step_timeout), stalled_(num_models) {}

  // `running_steps`: by model, how long its present step has been running, zero between steps.
  std::vector<Change> Look(absl::Span<const absl::Duration> running_steps);

  // Of some model, as of the last look.
  bool stalled() const;

  // A step that has been running for so long will not come back: only a restart helps. Later than
  // a stall, because a restart loses every call.
  bool IsHopeless(absl::Duration running_step) const { return running_step > 2 * step_timeout_; }

 private:
  const absl::Duration step_timeout_;
  std::vector<bool> stalled_;  // by model
};

}  // namespace ddl

#endif  // DDL_SERVER_STEP_WATCHDOG_H_
