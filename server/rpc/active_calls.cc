#include "server/rpc/active_calls.h"

#include "absl/time/clock.h"

namespace ddl {

bool ActiveCalls::Enter() {
  const MutexLock lock(mu_);
  if (counting_) ++count_;
  return counting_;
}

void ActiveCalls::Leave() {
  const MutexLock lock(mu_);
  if (--count_ == 0) changed_.NotifyAll();
}

void ActiveCalls::StopCounting() {
  const MutexLock lock(mu_);
  counting_ = false;
}

bool ActiveCalls::WaitUntilNone(absl::Time deadline) {
  const MutexLock lock(mu_);
  while (count_ > 0 && !interrupted_ && absl::Now() < deadline) {
    changed_.WaitUntil(mu_, absl::ToChronoTime(deadline));
  }
  return count_ == 0;
}

void ActiveCalls::Interrupt() {
  const MutexLock lock(mu_);
  interrupted_ = true;
  changed_.NotifyAll();
}

}  // namespace ddl
