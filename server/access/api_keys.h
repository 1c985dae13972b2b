#ifndef DDL_SERVER_ACCESS_API_KEYS_H_
#define DDL_SERVER_ACCESS_API_KEYS_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "server/access/rate_limit.h"

// Who may call. Keys are known by their SHA-256 only: the file that lists them gives none away, and
// neither does memory or the log. A key is a long random string, so that a fast hash is enough.

namespace ddl {

using KeyHash = std::array<unsigned char, 32>;  // SHA-256

// One line of the key file.
struct ApiKey {
  std::string name;  // for logs and answers; letters, digits, '.', '_' and '-'
  KeyHash hash{};
  bool high_priority = false;                 // may ask for PRIORITY_HIGH
  std::optional<double> requests_per_minute;  // none: as many as it likes
  std::optional<double> tokens_per_minute;    // prompt and generated together
};

// Reads the content of a key file: a line per key, '#' starts a comment.
//
//   NAME sha256:HEX [priority=high] [requests_per_minute=N] [tokens_per_minute=N]
//
// Several lines may bear one name (an old key and its successor): they share its rates, which must
// then be the same. INVALID_ARGUMENT naming the file (`path`, for the message only), the line and
// what is allowed, never the hash.
absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(const std::string& content,
                                                 const std::string& path);

// The keys in force, and what each name has used up. Thread-safe.
class ApiKeys {
 public:
  // What a call may do, once its key is known.
  struct Caller {
    std::string name;  // empty where no key is wanted
    bool high_priority = false;
  };

  // Until Replace no key is wanted: everybody may do everything.
  explicit ApiKeys(std::function<absl::Time()> now = absl::Now) : now_(std::move(now)) {}

  // Puts `keys` in force, for calls from now on; those that run go on. Names that stay keep what
  // they have used, unless their rates have changed.
  void Replace(std::vector<ApiKey> keys);

  // `authorization` is the metadata of that name, "Bearer KEY"; empty: none came.
  // UNAUTHENTICATED for none, another scheme or an unknown key, in words that do not tell which
  // keys there are; in a time that does not depend on how much of a key was right.
  absl::StatusOr<Caller> Authenticate(std::string_view authorization) const;

  // Counts a request of `caller`, or tokens that it may take, or refuses them:
  // RESOURCE_EXHAUSTED, RATE_LIMITED with RetryInfo. Tokens that it did not take are given back by
  // ReturnTokens. A name that is gone since Authenticate has no rates any more.
  absl::Status TakeRequest(const Caller& caller);
  absl::Status TakeTokens(const Caller& caller, int64_t tokens);
  void ReturnTokens(const Caller& caller, int64_t tokens);

 private:
  struct Usage {
    std::optional<double> requests_per_minute;
    std::optional<double> tokens_per_minute;
    std::optional<RateLimit> requests;
    std::optional<RateLimit> tokens;
  };

  const std::function<absl::Time()> now_;
  mutable Mutex mu_;
  bool wanted_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<ApiKey> keys_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Usage, std::less<>> usage_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ddl

#endif  // DDL_SERVER_ACCESS_API_KEYS_H_
