#include "server/net/connection_rate.h"

#include <algorithm>
#include <utility>

namespace ddl {
namespace {

constexpr absl::Duration kBurst = absl::Seconds(1);
// A look at all addresses costs time, and what it finds may stay a little.
constexpr absl::Duration kLookInterval = absl::Seconds(1);

}  // namespace

std::optional<absl::Time> ConnectionRate::Turn(const std::string& address, absl::Time now) {
  if (interval_ == absl::ZeroDuration()) return now;
  if (now >= next_look_) {
    ForgetEmpty(now);
    next_look_ = now + kLookInterval;
  }
  absl::Time& empty_at = empty_at_.try_emplace(address, now).first->second;
  const absl::Time full_with_it = std::max(empty_at, now) + interval_;
  const absl::Time turn = std::max(now, full_with_it - kBurst);
  if (turn > now + longest_wait_) return std::nullopt;
  empty_at = full_with_it;
  return turn;
}

void ConnectionRate::ForgetEmpty(absl::Time now) {
  std::erase_if(empty_at_, [now](const auto& entry) { return entry.second <= now; });
}

}  // namespace ddl
