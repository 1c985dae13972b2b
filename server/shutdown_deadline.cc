#include "server/shutdown_deadline.h"

#include <utility>

#include "absl/time/clock.h"

namespace ddl {

ShutdownDeadline::ShutdownDeadline(absl::Duration grace, std::function<void()> expired)
    : thread_([this, deadline = absl::Now() + grace, expired = std::move(expired)] {
        Wait(deadline, expired);
      }) {}

ShutdownDeadline::~ShutdownDeadline() {
  {
    const MutexLock lock(mu_);
    ended_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void ShutdownDeadline::Wait(absl::Time deadline, const std::function<void()>& expired) {
  {
    const MutexLock lock(mu_);
    while (!ended_ && absl::Now() < deadline) changed_.WaitUntil(mu_, absl::ToChronoTime(deadline));
    if (ended_) return;
  }
  expired();
}

}  // namespace ddl
