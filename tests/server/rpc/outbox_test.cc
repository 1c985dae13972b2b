#include "server/rpc/outbox.h"

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"

namespace ddl {
namespace {

using Box = Outbox<char>;

// What Next says to do, as one word.
std::string NextOf(Box& box) {
  const Box::Action action = box.Next();
  if (const auto* write = std::get_if<Box::Write>(&action)) return std::string(1, *write->event);
  if (const auto* end = std::get_if<Box::End>(&action)) {
    return "end " + std::string(absl::StatusCodeToString(end->status.code()));
  }
  return "-";
}

// A script: a letter is announced and pushed, '.' asks Next, '+' and '-' are Taken(ok) and not,
// 'O' closes with OK, 'C' with CANCELLED.
std::string Play(std::string_view script) {
  Box box(/*capacity=*/4);
  std::string log;
  for (const char step : script) {
    switch (step) {
      case '.':
        if (!log.empty()) log += ' ';
        log += NextOf(box);
        break;
      case '+':
      case '-':
        if (box.Taken(step == '+')) log += " drained";
        break;
      case 'O':
        box.Close(absl::OkStatus());
        break;
      case 'C':
        box.Close(absl::CancelledError("cancelled"));
        break;
      default:
        box.Announce(1);
        box.Push(step);
    }
  }
  return log + (box.full() ? " full" : "");
}

struct Row {
  const char* what;
  const char* script;
  const char* log;
};

TEST(OutboxTest, GivesOneThingAtATime) {
  const Row rows[] = {
      {"nothing there", ".", "-"},
      {"the end of an empty stream", "O.", "end OK"},
      {"nothing after the end", "O..", "end OK -"},
      {"one event, then nothing", "a..+.", "a - -"},
      {"not two at a time", "ab..+.", "a - b"},
      {"in order, then the end", "abO.+.+.", "a b end OK"},
      {"the end waits for the last event", "aO..+.", "a - end OK"},
      {"a failure drops what waits", "abcC.", "end CANCELLED"},
      {"but waits for what was given", "ab.C.+.", "a - end CANCELLED"},
      {"a client that went away gets no more", "abc.-.", "a -"},
      {"and its end is no success", "abc.-O.", "a end CANCELLED"},
      {"nor when the last event was not taken", "aO.-.", "a end CANCELLED"},
      {"though a failure stays what it was", "ab.-C.", "a end CANCELLED"},
      {"below capacity", "abc", ""},
      {"at capacity", "abcd", " full"},
      {"one being taken counts", "abcd.", "a full"},
      {"full until half of it", "abcd.+", "a full"},
      {"half of it", "abcd.+.+", "a b drained"},
      {"drained once", "abcd.+.+.+", "a b drained c"},
      {"and full again", "abcd.+.+efgh", "a b drained full"},
      {"one that will be dropped drains too", "abcd.-", "a full"},
  };
  for (const Row& row : rows) EXPECT_EQ(Play(row.script), row.log) << row.what;
}

TEST(OutboxTest, CountsWhatIsAnnounced) {
  Box box(2);
  box.Announce(2);
  EXPECT_TRUE(box.full());
  EXPECT_EQ(NextOf(box), "-");
  box.Push('a');
  EXPECT_EQ(NextOf(box), "a");
  EXPECT_EQ(box.num_taken(), 0);
  EXPECT_TRUE(box.Taken(true));
  EXPECT_EQ(box.num_taken(), 1);
  EXPECT_FALSE(box.full());
}

TEST(OutboxDeathTest, ChecksItsUsers) {
  EXPECT_DEATH(Play("Oa"), "an event after the end");
  EXPECT_DEATH(Play("OC"), "closed once");
  EXPECT_DEATH(Play("a+"), "taken what was not given");
}

}  // namespace
}  // namespace ddl
