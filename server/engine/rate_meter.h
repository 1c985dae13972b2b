#ifndef DDL_SERVER_ENGINE_RATE_METER_H_
#define DDL_SERVER_ENGINE_RATE_METER_H_

#include <cmath>
#include <optional>

#include "absl/time/time.h"

namespace ddl {

// How many events a second of work brings. What happened a `memory` of work ago weighs 1/e of
// what happens now. Not thread-safe.
class RateMeter {
 public:
  explicit RateMeter(absl::Duration memory) : memory_(memory) {}

  void Record(double events, absl::Duration work) {
    const double kept = std::exp(-absl::FDivDuration(work, memory_));
    events_ = events_ * kept + events;
    seconds_ = seconds_ * kept + absl::ToDoubleSeconds(work);
  }
  // None before the first event.
  std::optional<double> per_second() const {
    if (events_ <= 0.0 || seconds_ <= 0.0) return std::nullopt;
    return events_ / seconds_;
  }

 private:
  absl::Duration memory_;
  double events_ = 0.0;
  double seconds_ = 0.0;
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_RATE_METER_H_
