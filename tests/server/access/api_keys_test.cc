#include "server/access/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <future>
#include <string>

#include "base/file_watcher.h"
#include "base/status_details.h"
#include "server/access/rate_limit.h"
#include "tests/server/access/key_file.h"

namespace ddl {
namespace {

using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;

TEST(ParseApiKeysTest, ReadsNamesRightsAndRates) {
  const auto keys = ParseApiKeys(
      std::string("# who may call\n\n") + "alice " + kHashA + " priority=high\n  bob.2\t" + kHashB +
          " requests_per_minute=60 tokens_per_minute=1.5e4  # a script\r\n",
      "keys");
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 2);
  EXPECT_EQ((*keys)[0].name, "alice");
  EXPECT_TRUE((*keys)[0].high_priority);
  EXPECT_EQ((*keys)[0].requests_per_minute, std::nullopt);
  EXPECT_EQ((*keys)[1].name, "bob.2");
  EXPECT_FALSE((*keys)[1].high_priority);
  EXPECT_EQ((*keys)[1].requests_per_minute, 60.0);
  EXPECT_EQ((*keys)[1].tokens_per_minute, 15000.0);
}

TEST(ParseApiKeysTest, SaysWhatIsWrongAndGivesNoHashAway) {
  const std::string a = std::string("alice ") + kHashA;
  struct Row {
    const char* name;
    std::string content;
    const char* message;
  };
  const Row kRows[] = {
      {"nothing", "", "lists no key"},
      {"only comments", "# alice\n\n", "lists no key"},
      {"no hash", "alice\n", ":1: must be NAME sha256:HEX"},
      {"a name with a slash", "al/ice " + std::string(kHashA), ":1: the name must be 1...64"},
      {"a name of 65 letters", std::string(65, 'a') + " " + kHashA, "the name must be 1...64"},
      {"a key in the clear", "\nalice secret-a\n", ":2: 'alice' must be followed by sha256:"},
      {"63 digits", a.substr(0, a.size() - 1), "64 hexadecimal digits"},
      {"65 digits", a + "0", "64 hexadecimal digits"},
      {"no digit", a.substr(0, a.size() - 1) + "g", "64 hexadecimal digits"},
      {"unknown option", a + " rate=1", "unknown option 'rate=1' of 'alice'"},
      {"another priority", a + " priority=low", "unknown option 'priority=low'"},
      {"rate 0", a + " requests_per_minute=0", "must be a number above 0, not '0'"},
      {"rate nan", a + " tokens_per_minute=nan", "must be a number above 0, not 'nan'"},
      {"rate without a number", a + " tokens_per_minute", "must be a number above 0, not ''"},
      {"the same key twice", a + "\nbob " + kHashA, ":2: 'bob' has the key of 'alice'"},
      {"other rates", a + "\nalice " + kHashB + " tokens_per_minute=5",
       ":2: the keys of 'alice' must have the same rates"},
  };
  for (const Row& row : kRows) {
    SCOPED_TRACE(row.name);
    const auto keys = ParseApiKeys(row.content, "/etc/keys");
    ASSERT_FALSE(keys.ok());
    EXPECT_EQ(keys.status().code(), absl::StatusCode::kInvalidArgument);
    const std::string message(keys.status().message());
    EXPECT_THAT(message, HasSubstr(row.message));
    EXPECT_THAT(message, HasSubstr("/etc/keys"));
    EXPECT_THAT(message, Not(ContainsRegex("[0-9a-f]{32}")));
    EXPECT_THAT(message, Not(HasSubstr("secret-a")));
  }
}

ApiKey Key(std::string name, const std::string& secret) {
  ApiKey key;
  key.name = std::move(name);
  // Through a file, as the hash of a secret comes in.
  const auto hash = [&] {
    std::string command = "printf %s '" + secret + "' | sha256sum";
    FILE* pipe = popen(command.c_str(), "r");
    char digits[65] = {};
    EXPECT_EQ(fread(digits, 1, 64, pipe), 64u);
    pclose(pipe);
    return std::string(digits);
  }();
  for (size_t i = 0; i < key.hash.size(); ++i) {
    key.hash[i] = static_cast<unsigned char>(std::stoi(hash.substr(2 * i, 2), nullptr, 16));
  }
  return key;
}

TEST(ApiKeysTest, KnowsKeysByTheirHash) {
  ApiKey alice = Key("alice", "secret-a");
  alice.high_priority = true;
  ApiKeys keys;
  const auto anybody = keys.Authenticate("");
  ASSERT_TRUE(anybody.ok()) << "no key is wanted yet";
  EXPECT_EQ(anybody->name, "");
  EXPECT_TRUE(anybody->high_priority);
  keys.Replace({alice, Key("bob", "secret-b"), Key("bob", "secret-c")});
  struct Row {
    const char* authorization;
    const char* name;  // null: refused
  };
  const Row kRows[] = {
      {"Bearer secret-a", "alice"},  {"Bearer secret-b", "bob"},
      {"Bearer secret-c", "bob"},    {"", nullptr},
      {"secret-a", nullptr},         {"Bearer", nullptr},
      {"Bearer ", nullptr},          {"Bearer secret-", nullptr},
      {"Bearer secret-aa", nullptr}, {"bearer secret-a", nullptr},
      {"Bearer  secret-a", nullptr}, {"Basic secret-a", nullptr},
  };
  for (const Row& row : kRows) {
    SCOPED_TRACE(row.authorization);
    const auto caller = keys.Authenticate(row.authorization);
    if (row.name == nullptr) {
      EXPECT_EQ(caller.status().code(), absl::StatusCode::kUnauthenticated);
      EXPECT_THAT(std::string(caller.status().message()), Not(HasSubstr("secret")));
    } else {
      ASSERT_TRUE(caller.ok()) << caller.status();
      EXPECT_EQ(caller->name, row.name);
      EXPECT_EQ(caller->high_priority, std::string(row.name) == "alice");
    }
  }
}

TEST(ApiKeysTest, CountsRequestsAndTokensByTheMinute) {
  absl::Time now = absl::UnixEpoch();
  ApiKey key = Key("alice", "secret-a");
  key.requests_per_minute = 4;
  key.tokens_per_minute = 600;
  ApiKeys keys([&now] { return now; });
  keys.Replace({key, Key("bob", "secret-b")});
  const ApiKeys::Caller alice = {.name = "alice"}, bob = {.name = "bob"};
  const auto wait = [](const absl::Status& refused) {
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
    EXPECT_EQ(DetailsOf(refused).reason, "RATE_LIMITED");
    return DetailsOf(refused).retry_after.value_or(absl::ZeroDuration());
  };
  EXPECT_TRUE(keys.TakeTokens(alice, 500).ok());
  EXPECT_EQ(wait(keys.TakeTokens(alice, 200)), absl::Seconds(10)) << "100 are left, 10 a second";
  now += absl::Seconds(10);
  EXPECT_TRUE(keys.TakeTokens(alice, 200).ok());
  keys.ReturnTokens(alice, 150);
  EXPECT_TRUE(keys.TakeTokens(alice, 150).ok());
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(keys.TakeRequest(alice).ok()) << i;
  EXPECT_EQ(wait(keys.TakeRequest(alice)), absl::Seconds(15));
  EXPECT_TRUE(keys.TakeTokens(alice, 0).ok());
  now += absl::Seconds(15);
  EXPECT_TRUE(keys.TakeRequest(alice).ok());
  EXPECT_FALSE(keys.TakeRequest(alice).ok());
  now += absl::Minutes(10);
  EXPECT_TRUE(keys.TakeTokens(alice, 100'000).ok())
      << "more than a minute's worth wants a full bucket";
  EXPECT_GT(wait(keys.TakeTokens(alice, 1)), absl::Minutes(100)) << "and leaves it overdrawn";
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(keys.TakeRequest(bob).ok());
    EXPECT_TRUE(keys.TakeTokens(bob, 100'000).ok());
  }
}

TEST(ApiKeysTest, ReplacesKeysAndKeepsWhatWasUsed) {
  absl::Time now = absl::UnixEpoch();
  ApiKey old_key = Key("alice", "secret-a");
  old_key.requests_per_minute = 1;
  ApiKeys keys([&now] { return now; });
  keys.Replace({old_key, Key("bob", "secret-b")});
  const ApiKeys::Caller alice = {.name = "alice"}, bob = {.name = "bob"};
  EXPECT_TRUE(keys.TakeRequest(alice).ok());

  ApiKey new_key = Key("alice", "secret-c");
  new_key.requests_per_minute = 1;
  keys.Replace({new_key});
  EXPECT_FALSE(keys.Authenticate("Bearer secret-a").ok());
  EXPECT_FALSE(keys.Authenticate("Bearer secret-b").ok());
  EXPECT_TRUE(keys.Authenticate("Bearer secret-c").ok());
  EXPECT_FALSE(keys.TakeRequest(alice).ok()) << "a new key is no new minute";
  EXPECT_TRUE(keys.TakeRequest(bob).ok()) << "what came before goes on";
  keys.ReturnTokens(bob, 1);

  new_key.requests_per_minute = 2;
  keys.Replace({new_key});
  EXPECT_TRUE(keys.TakeRequest(alice).ok()) << "another rate begins anew";
}

// Between the caller's look and the watcher's first.
TEST(ReadFileTest, SaysWhenItCannot) {
  const KeyFile file("one");
  EXPECT_EQ(*ReadFile(file.path()), "one");
  EXPECT_EQ(ReadFile("/nowhere/keys").status().code(), absl::StatusCode::kNotFound);
}

TEST(FileWatcherTest, NoticesWhatChangedBeforeItBegan) {
  const KeyFile file("two");
  std::promise<std::string> changed;
  const FileWatcher watcher(file.path(), "one", absl::Milliseconds(1),
                            [&](const std::string& content) { changed.set_value(content); });
  EXPECT_EQ(changed.get_future().get(), "two");
}

TEST(FileWatcherTest, NoticesOtherContentAndNothingElse) {
  const KeyFile file("one");
  std::promise<std::string> changed;
  int calls = 0;
  {
    const FileWatcher watcher(file.path(), "one", absl::Milliseconds(1),
                              [&](const std::string& content) {
                                if (++calls == 1) changed.set_value(content);
                              });
    file.Replace("one");
    std::filesystem::remove(file.path());
    file.Replace("two");
    EXPECT_EQ(changed.get_future().get(), "two");
  }
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace ddl
