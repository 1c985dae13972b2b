#include "server/access/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <sstream>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_details.h"

namespace ddl {
namespace {

constexpr size_t kMaxNameBytes = 64;
constexpr std::string_view kScheme = "Bearer ";
constexpr char kFormat[] =
    "NAME sha256:HEX [priority=high] [requests_per_minute=N] [tokens_per_minute=N]";

KeyHash HashOf(std::string_view key) {
  KeyHash hash;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), hash.data());
  return hash;
}

bool IsName(absl::string_view text) {
  if (text.empty() || text.size() > kMaxNameBytes) return false;
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '_' && c != '-') {
      return false;
    }
  }
  return true;
}

std::optional<KeyHash> ParseHash(absl::string_view text) {
  constexpr absl::string_view kPrefix = "sha256:";
  KeyHash hash;
  if (text.size() != kPrefix.size() + 2 * hash.size() ||
      text.substr(0, kPrefix.size()) != kPrefix) {
    return std::nullopt;
  }
  text.remove_prefix(kPrefix.size());
  for (const char c : text) {
    if (std::isxdigit(static_cast<unsigned char>(c)) == 0) return std::nullopt;
  }
  const std::string bytes = absl::HexStringToBytes(text);
  std::copy(bytes.begin(), bytes.end(), hash.begin());
  return hash;
}

std::optional<double> ParseRate(absl::string_view text) {
  double rate = 0.0;
  if (!absl::SimpleAtod(text, &rate) || !std::isfinite(rate) || rate <= 0.0) return std::nullopt;
  return rate;
}

// What is wrong with a line, or an empty string.
std::string ParseLine(absl::string_view line, ApiKey* key) {
  const std::vector<absl::string_view> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
  if (words.size() < 2) return absl::StrCat("must be ", kFormat);
  if (!IsName(words[0])) {
    return absl::StrCat("the name must be 1...", kMaxNameBytes,
                        " letters, digits, '.', '_' and '-'");
  }
  key->name = std::string(words[0]);
  const std::optional<KeyHash> hash = ParseHash(words[1]);
  if (!hash.has_value()) {
    return absl::StrCat("'", key->name, "' must be followed by sha256: and 64 hexadecimal digits");
  }
  key->hash = *hash;
  for (size_t i = 2; i < words.size(); ++i) {
    const std::pair<absl::string_view, absl::string_view> option =
        absl::StrSplit(words[i], absl::MaxSplits('=', 1));
    std::optional<double>* rate = option.first == "requests_per_minute" ? &key->requests_per_minute
                                  : option.first == "tokens_per_minute" ? &key->tokens_per_minute
                                                                        : nullptr;
    if (words[i] == "priority=high") {
      key->high_priority = true;
    } else if (rate == nullptr) {
      return absl::StrCat("unknown option '", words[i], "' of '", key->name, "': must be ",
                          kFormat);
    } else if (*rate = ParseRate(option.second); !rate->has_value()) {
      return absl::StrCat(option.first, " of '", key->name, "' must be a number above 0, not '",
                          option.second, "'");
    }
  }
  return "";
}

absl::Status CheckTogether(const std::vector<ApiKey>& keys, const ApiKey& added) {
  for (const ApiKey& key : keys) {
    if (key.hash == added.hash) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", added.name, "' has the key of '", key.name, "'"));
    }
    if (key.name == added.name && (key.requests_per_minute != added.requests_per_minute ||
                                   key.tokens_per_minute != added.tokens_per_minute)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the keys of '", added.name, "' must have the same rates"));
    }
  }
  return absl::OkStatus();
}

// Takes `amount` of what `limit` lets through, or says how to wait for it.
absl::Status TakeFrom(std::optional<RateLimit>* limit, double per_minute, double amount,
                      absl::Time now, absl::string_view name, absl::string_view what) {
  const absl::Duration wait = (*limit)->TimeUntil(amount, now);
  if (wait > absl::ZeroDuration()) {
    return WithDetails(
        absl::ResourceExhaustedError(absl::StrCat("the key '", name, "' may use ", per_minute, " ",
                                                  what, " a minute, and has used them")),
        {.reason = "RATE_LIMITED", .retry_after = wait});
  }
  (*limit)->Take(amount, now);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(const std::string& content,
                                                 const std::string& path) {
  std::istringstream lines(content);
  std::vector<ApiKey> keys;
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    line.resize(std::min(line.find('#'), line.size()));
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    ApiKey key;
    std::string wrong = ParseLine(line, &key);
    if (wrong.empty()) wrong = std::string(CheckTogether(keys, key).message());
    if (!wrong.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", wrong));
    }
    keys.push_back(std::move(key));
  }
  if (keys.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " lists no key; a line must be ", kFormat));
  }
  return keys;
}

void ApiKeys::Replace(std::vector<ApiKey> keys) {
  const MutexLock lock(mu_);
  std::map<std::string, Usage, std::less<>> usage;
  const absl::Time now = now_();
  for (const ApiKey& key : keys) {
    const auto before = usage_.find(key.name);
    if (before != usage_.end() && before->second.requests_per_minute == key.requests_per_minute &&
        before->second.tokens_per_minute == key.tokens_per_minute) {
      usage.emplace(key.name, before->second);
      continue;
    }
    Usage fresh;
    fresh.requests_per_minute = key.requests_per_minute;
    fresh.tokens_per_minute = key.tokens_per_minute;
    if (key.requests_per_minute.has_value()) fresh.requests.emplace(*key.requests_per_minute, now);
    if (key.tokens_per_minute.has_value()) fresh.tokens.emplace(*key.tokens_per_minute, now);
    usage.emplace(key.name, fresh);
  }
  usage_.swap(usage);
  keys_ = std::move(keys);
  wanted_ = true;
}

absl::StatusOr<ApiKeys::Caller> ApiKeys::Authenticate(std::string_view authorization) const {
  // Whatever the outcome, the key is hashed and compared with all there are: the time tells
  // nothing.
  const bool bearer = authorization.starts_with(kScheme);
  const KeyHash hash = HashOf(bearer ? authorization.substr(kScheme.size()) : authorization);
  const MutexLock lock(mu_);
  if (!wanted_) return Caller{.name = "", .high_priority = true};
  const ApiKey* found = nullptr;
  for (const ApiKey& key : keys_) {
    if (CRYPTO_memcmp(key.hash.data(), hash.data(), hash.size()) == 0) found = &key;
  }
  if (authorization.empty()) {
    return absl::UnauthenticatedError(
        "this server wants a key, in the metadata 'authorization: Bearer KEY'");
  }
  if (!bearer) {
    return absl::UnauthenticatedError("the metadata 'authorization' must be 'Bearer KEY'");
  }
  if (found == nullptr) return absl::UnauthenticatedError("the key is not known");
  return Caller{.name = found->name, .high_priority = found->high_priority};
}

absl::Status ApiKeys::TakeRequest(const Caller& caller) {
  const MutexLock lock(mu_);
  const auto it = usage_.find(caller.name);
  if (it == usage_.end() || !it->second.requests.has_value()) return absl::OkStatus();
  return TakeFrom(&it->second.requests, *it->second.requests_per_minute, 1.0, now_(), it->first,
                  "requests");
}

absl::Status ApiKeys::TakeTokens(const Caller& caller, int64_t tokens) {
  const MutexLock lock(mu_);
  const auto it = usage_.find(caller.name);
  if (it == usage_.end() || !it->second.tokens.has_value()) return absl::OkStatus();
  return TakeFrom(&it->second.tokens, *it->second.tokens_per_minute, static_cast<double>(tokens),
                  now_(), it->first, "tokens");
}

void ApiKeys::ReturnTokens(const Caller& caller, int64_t tokens) {
  const MutexLock lock(mu_);
  const auto it = usage_.find(caller.name);
  if (it == usage_.end() || !it->second.tokens.has_value()) return;
  it->second.tokens->Take(-static_cast<double>(tokens), now_());
}

}  // namespace ddl
