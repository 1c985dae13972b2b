#ifndef DDL_SERVER_NET_CONNECTION_RATE_H_
#define DDL_SERVER_NET_CONNECTION_RATE_H_

#include <map>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace ddl {

// Says of each new connection when its address may have it: some at once, then as many a second as
// the rate allows. What comes faster waits for its turn, so that clients that all come back at the
// same moment are only late, and is refused once the turn is too far away. Pure policy: it has no
// thread and no clock. Not thread-safe.
class ConnectionRate {
 public:
  // `per_second`: connections of an address in a second, and how many of them may come at once; 0:
  // any number. `longest_wait`: the furthest turn that is given.
  ConnectionRate(int per_second, absl::Duration longest_wait)
      : interval_(per_second > 0 ? absl::Seconds(1) / per_second : absl::ZeroDuration()),
        longest_wait_(longest_wait) {}

  // When the connection that comes from `address` at `now` has its turn: `now` or later, never
  // before one that the same address was given. Unset: refused. Times never go back.
  std::optional<absl::Time> Turn(const std::string& address, absl::Time now);

  // Those that have come lately. Bounded by what may come until a whole second's worth has flowed
  // in again.
  size_t num_addresses() const { return empty_at_.size(); }

 private:
  void ForgetEmpty(absl::Time now);

  const absl::Duration interval_;
  const absl::Duration longest_wait_;
  // Each turn that was given puts an interval's worth into its address's bucket, which runs out
  // evenly: this is when it will be empty. As much as runs out in a second fits in.
  std::map<std::string, absl::Time> empty_at_;
  absl::Time next_look_ = absl::InfinitePast();
};

}  // namespace ddl

#endif  // DDL_SERVER_NET_CONNECTION_RATE_H_
