#include "server/telemetry/request_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "server/telemetry/trace_context.h"

namespace ddl {
namespace {

TEST(TraceContextTest, ParsesWhatTheStandardAllows) {
  const std::string trace = "0af7651916cd43dd8448eb211c80319c", span = "b7ad6b7169203331";
  struct Row {
    const char* what;
    std::string traceparent;
    bool accepted;
  };
  const Row rows[] = {
      {"sampled", "00-" + trace + "-" + span + "-01", true},
      {"not sampled", "00-" + trace + "-" + span + "-00", true},
      {"a later version", "01-" + trace + "-" + span + "-01", true},
      {"a later version with more", "cc-" + trace + "-" + span + "-01-what-else", true},
      {"a later version with something attached", "cc-" + trace + "-" + span + "-01x", false},
      {"this version with more", "00-" + trace + "-" + span + "-01-more", false},
      {"no version", "ff-" + trace + "-" + span + "-01", false},
      {"capitals", "00-0AF7651916CD43DD8448EB211C80319C-" + span + "-01", false},
      {"no trace", "00-" + std::string(32, '0') + "-" + span + "-01", false},
      {"no parent", "00-" + trace + "-" + std::string(16, '0') + "-01", false},
      {"a digit less", "00-" + trace + "-" + span + "-0", false},
      {"another separator", "00_" + trace + "-" + span + "-01", false},
      {"no digit", "00-" + trace.substr(1) + "g-" + span + "-01", false},
      {"flags that are none", "00-" + trace + "-" + span + "-0x", false},
      {"nothing", "", false},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.what);
    const auto context = ParseTraceparent(row.traceparent);
    ASSERT_EQ(context.has_value(), row.accepted);
    if (!row.accepted) continue;
    EXPECT_EQ(context->trace_id, trace);
    EXPECT_EQ(context->parent_id, span);
    EXPECT_NE(context->span_id, span);
    const std::string sent = FormatTraceparent(*context);
    EXPECT_EQ(sent, "00-" + trace + "-" + context->span_id + "-" + context->flags);
    EXPECT_TRUE(ParseTraceparent(sent).has_value());
  }
}

RequestLogEntry Entry() {
  RequestLogEntry entry;
  entry.request_id = "mine";
  entry.peer = "ipv4:127.0.0.1:4711";
  entry.method = "Generate";
  entry.model = "demo";
  entry.code = "OK";
  entry.duration = absl::Microseconds(12345);
  return entry;
}

TEST(RequestLogEntryTest, IsOneLineOfText) {
  RequestLogEntry entry = Entry();
  EXPECT_EQ(ToText(entry),
            "request request_id=mine method=Generate model=demo peer=ipv4:127.0.0.1:4711 code=OK "
            "duration_ms=12.345");
  entry.key = "alice";
  entry.usage = {.prompt_tokens = 7, .completion_tokens = 5, .cached_tokens = 2};
  entry.timings.queue = absl::Milliseconds(1);
  EXPECT_THAT(ToText(entry), testing::HasSubstr(" key=alice "));
  EXPECT_THAT(ToText(entry),
              testing::HasSubstr("prompt_tokens=7 cached_tokens=2 completion_tokens=5 queue_ms=1"));
}

// Whatever a client calls its request.
TEST(RequestLogEntryTest, IsNotForgedByIds) {
  struct Row {
    const char* id;
    const char* text;
  };
  const Row rows[] = {
      {"two words", "request_id=\"two words\" "},
      {"a=b", "request_id=\"a=b\" "},
      {"line\nrequest", "request_id=\"line\\nrequest\" "},
      {"quote\"", "request_id=\"quote\\\"\" "},
      {"\xff", "request_id=\xEF\xBF\xBD "},  // no UTF-8
      {"", "request_id=\"\" "},
  };
  for (const Row& row : rows) {
    RequestLogEntry entry = Entry();
    entry.request_id = row.id;
    EXPECT_THAT(ToText(entry), testing::HasSubstr(row.text));
    EXPECT_THAT(ToText(entry), testing::Not(testing::HasSubstr("\n")));
    const std::string members = ToJsonMembers(entry);
    EXPECT_THAT(members, testing::Not(testing::HasSubstr("\n")));
    const auto json = nlohmann::json::parse("{" + members + "}");
    EXPECT_EQ(json["method"], "Generate");
    if (row.id[0] != '\xff') {
      EXPECT_EQ(json["request_id"], row.id);
    }
  }
}

}  // namespace
}  // namespace ddl
