#ifndef DDL_SERVER_API_KEYS_H_
#define DDL_SERVER_API_KEYS_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/engine/mutex.h"
#include "server/rate_limit.h"

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

// Reads a key file: a line per key, '#' starts a comment.
//
//   NAME sha256:HEX [priority=high] [requests_per_minute=N] [tokens_per_minute=N]
//
// Several lines may bear one name (an old key and its successor): they share its rates, which must
// then be the same. INVALID_ARGUMENT naming the file, the line and what is allowed, never the hash;
// NOT_FOUND when the file cannot be read.
absl::StatusOr<std::vector<ApiKey>> ReadApiKeys(const std::string& path);

// The keys in force, and what each name has used up. Thread-safe.
class ApiKeys {
 public:
  // What a call may do, once its key is known.
  struct Caller {
    std::string name;
    bool high_priority = false;
  };

  explicit ApiKeys(std::vector<ApiKey> keys, std::function<absl::Time()> now = absl::Now);

  // Puts others in force, for calls from now on. Names that stay keep what they have used, unless
  // their rates have changed.
  void Replace(std::vector<ApiKey> keys);

  // `authorization` is the metadata of that name, "Bearer KEY"; empty: none came.
  // UNAUTHENTICATED for none, another scheme or an unknown key, in words that do not tell which
  // keys there are; in a time that does not depend on how much of a key was right.
  absl::StatusOr<Caller> Authenticate(std::string_view authorization) const;

  // Counts one request of `name` that may take `tokens`, or refuses it: RESOURCE_EXHAUSTED,
  // RATE_LIMITED with RetryInfo. What it did not take is given back by Settle.
  absl::Status Admit(std::string_view name, int64_t tokens);
  void Settle(std::string_view name, int64_t unused_tokens);

 private:
  struct Usage {
    std::optional<double> requests_per_minute;
    std::optional<double> tokens_per_minute;
    std::optional<RateLimit> requests;
    std::optional<RateLimit> tokens;
  };

  void Install(std::vector<ApiKey> keys) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::function<absl::Time()> now_;
  mutable Mutex mu_;
  std::vector<ApiKey> keys_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Usage, std::less<>> usage_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ddl

#endif  // DDL_SERVER_API_KEYS_H_
