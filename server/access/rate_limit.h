#ifndef DDL_SERVER_ACCESS_RATE_LIMIT_H_
#define DDL_SERVER_ACCESS_RATE_LIMIT_H_

#include <algorithm>

#include "absl/time/time.h"

namespace ddl {

// A token bucket that holds one minute's worth, full at first: so much may come at once, then as
// much as flows in. It may be overdrawn by what was only known afterwards, and then lets nothing
// pass until that has flowed in again. Not thread-safe.
class RateLimit {
 public:
  // `per_minute` > 0. `now` is the first time that TimeUntil or Take will be given.
  RateLimit(double per_minute, absl::Time now)
      : per_minute_(per_minute), level_(per_minute), filled_(now) {}

  // How long until `amount` may be taken; zero: at once. More than the bucket holds waits for a
  // full one. Times never go back.
  absl::Duration TimeUntil(double amount, absl::Time now) {
    Fill(now);
    const double missing = std::min(amount, per_minute_) - level_;
    return missing <= 0.0 ? absl::ZeroDuration() : absl::Minutes(missing / per_minute_);
  }
  // Takes it whatever the level. A negative amount gives back.
  void Take(double amount, absl::Time now) {
    Fill(now);
    level_ = std::min(level_ - amount, per_minute_);
  }

 private:
  void Fill(absl::Time now) {
    if (now <= filled_) return;
    level_ = std::min(per_minute_,
                      level_ + per_minute_ * absl::FDivDuration(now - filled_, absl::Minutes(1)));
    filled_ = now;
  }

  const double per_minute_;
  double level_;
  absl::Time filled_;
};

}  // namespace ddl

#endif  // DDL_SERVER_ACCESS_RATE_LIMIT_H_
