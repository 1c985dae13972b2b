// What a turn of the step thread does in which order: steps are begun and finished, and clients are
// told between the two.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/engine/engine.h"
#include "tests/server/engine/engine_fixture.h"

namespace ddl {
namespace {

using testing::ElementsAre;

// Writes down what reaches the runner and one request's sink, and in which turn.
class Diary {
 public:
  explicit Diary(SteppedEngine* e) : e_(*e) {
    e_.runner->on_begin = [this](auto) { Write("begin ", e_.runner->num_begun()); };
    e_.runner->on_forward = [this](auto) {
      Write("finish ", e_.runner->num_steps());
      return absl::OkStatus();
    };
  }

  void Watch(const std::shared_ptr<RecordingSink>& sink) {
    RecordingSink* const watched = sink.get();
    watched->on_delta = [this, watched] {
      Write("token ", watched->num_deltas);
      return watched->state;
    };
    watched->on_end = [this] { Write("end"); };
  }

  // Of one turn.
  std::string Turn() {
    words_.clear();
    if (!e_.engine->Step()) words_.push_back("idle");
    return absl::StrJoin(words_, ", ");
  }

 private:
  template <typename... Parts>
  void Write(const Parts&... parts) {
    words_.push_back(absl::StrCat(parts...));
  }

  SteppedEngine& e_;
  std::vector<std::string> words_;
};

TEST(EngineTurnsTest, ClientsAreToldWhileTheNextStepIsUnderWay) {
  SteppedEngine e;
  Diary diary(&e);
  const auto sink = e.Submit(Generate(Prompt(5), 3));
  diary.Watch(sink);
  EXPECT_EQ(diary.Turn(), "begin 1, finish 1");
  EXPECT_TRUE(sink->start.has_value()) << "told in the step that first computes any of it";
  EXPECT_EQ(diary.Turn(), "begin 2, token 1, finish 2");
  EXPECT_EQ(diary.Turn(), "begin 3, token 2, finish 3");
  EXPECT_EQ(diary.Turn(), "token 3, end") << "nobody waits for a step that does not come";
  EXPECT_EQ(diary.Turn(), "idle");
  ExpectIdle(e);
}

TEST(EngineTurnsTest, WhatIsUnderWayWhenASinkIsFullIsStillDelivered) {
  SteppedEngine e;
  Diary diary(&e);
  const auto sink = e.Submit(Generate(Prompt(5), 5));
  diary.Watch(sink);
  diary.Turn();
  sink->state = SinkState::kFull;
  EXPECT_EQ(diary.Turn(), "begin 2, token 1, finish 2");
  EXPECT_EQ(e.engine->load().paused_slow_reader, 1);
  EXPECT_EQ(diary.Turn(), "token 2");
  EXPECT_EQ(diary.Turn(), "idle");
  EXPECT_EQ(e.observer.stalls, 1) << "it had been paused";
  sink->state = SinkState::kReady;
  e.engine->Resume(e.handle);
  e.Run();
  EXPECT_EQ(sink->ids, ExpectedTokens(Prompt(5), 5));
  ExpectIdle(e);
}

// What ends a request while a step of it is under way, and how many tokens it was given.
TEST(EngineTurnsTest, RequestsEndWhileAStepIsUnderWay) {
  struct Row {
    const char* name;
    int32_t tokens;  // asked for
    std::function<void(SteppedEngine&, RecordingSink&)> before_second;
    absl::StatusCode code;
    size_t told;
  };
  const Row rows[] = {
      {"its last token, as its sink is full", 2,
       [](SteppedEngine&, RecordingSink& sink) { sink.state = SinkState::kFull; },
       absl::StatusCode::kOk, 2},
      {"a cancel from its sink", 9,
       [](SteppedEngine& e, RecordingSink& sink) {
         sink.on_delta = [&e] {
           e.engine->Cancel(e.handle);
           return SinkState::kReady;
         };
       },
       absl::StatusCode::kCancelled, 2},
      {"its deadline, in the step", 9,
       [](SteppedEngine& e, RecordingSink&) { e.now += absl::Seconds(9); },
       absl::StatusCode::kDeadlineExceeded, 1},
      {"a stop", 9, [](SteppedEngine& e, RecordingSink&) { e.engine->Stop(); },
       absl::StatusCode::kUnavailable, 1},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e;
    Request request = Generate(Prompt(5), row.tokens);
    request.deadline = e.now + absl::Seconds(9);
    const auto sink = e.Submit(std::move(request));
    e.engine->Step();
    row.before_second(e, *sink);
    while (e.engine->Step()) {
    }
    EXPECT_EQ(sink->status().code(), row.code);
    EXPECT_EQ(sink->ids.size(), row.told);
    EXPECT_EQ(sink->end->usage.completion_tokens, row.told);
    EXPECT_EQ(sink->calls_after_end, 0);
    ExpectIdle(e);
  }
}

}  // namespace
}  // namespace ddl
