// Who runs, who waits and who is made to wait: pauses of slow readers, priorities, fairness, the
// prefix cache, and refusals by deadline.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "server/engine/engine.h"
#include "server/engine/status_details.h"
#include "tests/server/engine/engine_fixture.h"

namespace ddl {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::Pair;

// --- Slow readers --------------------------------------------------------------------------

TEST(EngineQueueTest, AFullSinkPausesAndResumeGoesOn) {
  SteppedEngine e;
  const auto slow = e.Submit(Generate(Prompt(5), 10));
  const RequestHandle handle = e.handle;
  const auto other = e.Submit(Generate(Prompt(4, 1), 6));
  e.engine->Step();
  e.engine->Step();
  slow->state = SinkState::kFull;
  e.engine->Step();
  EXPECT_EQ(slow->ids.size(), 3u);
  EXPECT_EQ(e.engine->load().paused_slow_reader, 1);
  EXPECT_EQ(e.engine->load().of(Task::kGenerate).running, 2) << "it has been started";
  EXPECT_EQ(e.observer.stalls, 1);
  e.Run();
  EXPECT_EQ(other->status(), absl::OkStatus()) << "nobody else waits for it";
  EXPECT_EQ(slow->ids.size(), 3u);
  EXPECT_FALSE(slow->end.has_value());
  EXPECT_FALSE(e.engine->Step()) << "nothing to compute";

  slow->state = SinkState::kReady;
  e.engine->Resume(handle);
  e.engine->Resume(handle);
  e.Run();
  EXPECT_EQ(slow->ids, ExpectedTokens(Prompt(5), 10));
  EXPECT_EQ(slow->status(), absl::OkStatus());
  EXPECT_THAT(e.observer.wasted_tokens, testing::IsEmpty()) << "nobody needed its blocks";
  EXPECT_EQ(slow->end->timings.preemptions, 0);
  ExpectIdle(e);
}

TEST(EngineQueueTest, APausedRequestGivesWayAndKeepsItsTokens) {
  struct Row {
    const char* name;
    FakeModelRunner::Options model;
    bool cache;
  };
  const Row rows[] = {
      {"its slot is needed", {.max_sequences = 1}, false},
      {"its blocks are needed", {.kv_num_blocks = 8}, false},
      {"its slot is needed, its blocks are found again", {.max_sequences = 1}, true},
      {"its blocks are needed, and overwritten", {.kv_num_blocks = 8}, true},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e(row.model, {.prefix_cache = row.cache});
    Request request = Generate(Prompt(7), 12);
    const auto slow = e.Submit(std::move(request));
    const RequestHandle handle = e.handle;
    for (int i = 0; i < 4; ++i) e.engine->Step();
    slow->state = SinkState::kFull;
    e.engine->Step();
    const auto other = e.Submit(Generate(Prompt(9, 1), 20));
    e.Run();
    EXPECT_EQ(other->ids, ExpectedTokens(Prompt(9, 1), 20));
    EXPECT_EQ(e.engine->load().kv_blocks_used, 0);
    slow->state = SinkState::kReady;
    e.engine->Resume(handle);
    e.Run();
    EXPECT_EQ(slow->ids, ExpectedTokens(Prompt(7), 12));
    EXPECT_EQ(slow->end->timings.preemptions, 1);
    ExpectIdle(e);
  }
}

TEST(EngineQueueTest, EveryCompletionOfASlowReaderPauses) {
  SteppedEngine e;
  Request request = Generate(Prompt(6), 9);
  ParamsOf(request).n = 3;
  const auto sink = e.Submit(std::move(request));
  for (int i = 0; i < 3; ++i) e.engine->Step();
  sink->state = SinkState::kFull;
  e.engine->Step();
  EXPECT_EQ(e.engine->load().paused_slow_reader, 3);
  EXPECT_EQ(e.observer.stalls, 1) << "one client";
  EXPECT_FALSE(e.engine->Step());
  sink->state = SinkState::kReady;
  e.engine->Resume(e.handle);
  e.Run();
  for (int32_t i = 0; i < 3; ++i) EXPECT_EQ(sink->completions[i], ExpectedTokens(Prompt(6), 9));
  ExpectIdle(e);
}

TEST(EngineQueueTest, APausedRequestEndsInEveryWay) {
  struct Row {
    const char* name;
    absl::Duration deadline;
    bool cancel;
    absl::Duration wait;
    StatusCode code;
    const char* reason;
    const char* finish_reason;
    const char* wasted;
  };
  const Row rows[] = {
      {"too slow", absl::InfiniteDuration(), false, absl::Seconds(30),
       StatusCode::kResourceExhausted, "SLOW_READER", "slow_reader", "error"},
      {"deadline", absl::Seconds(29), false, absl::Seconds(29), StatusCode::kDeadlineExceeded, "",
       "deadline", "deadline"},
      {"cancelled", absl::InfiniteDuration(), true, absl::ZeroDuration(), StatusCode::kCancelled,
       "", "cancel", "cancel"},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e({}, {.slow_reader_timeout = absl::Seconds(30)});
    Request request = Generate(Prompt(5), 10);
    request.deadline = e.now + row.deadline;
    const auto sink = e.Submit(std::move(request));
    e.engine->Step();
    sink->state = SinkState::kFull;
    e.engine->Step();
    if (row.wait > absl::ZeroDuration()) {
      e.now += row.wait - absl::Nanoseconds(1);
      EXPECT_FALSE(e.engine->Step());
      EXPECT_FALSE(sink->end.has_value());
      e.now += absl::Nanoseconds(1);
    }
    if (row.cancel) e.engine->Cancel(e.handle);
    EXPECT_TRUE(e.engine->Step());
    EXPECT_EQ(sink->status().code(), row.code);
    EXPECT_EQ(DetailsOf(sink->status()).reason, row.reason);
    EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair(row.finish_reason, 1)));
    EXPECT_THAT(e.observer.wasted_tokens, ElementsAre(Pair(row.wasted, 2)));
    e.engine->Resume(e.handle);
    EXPECT_FALSE(e.engine->Step());
    ExpectIdle(e);
  }
}

TEST(EngineQueueTest, ResumingStartsTheTimeoutAnew) {
  SteppedEngine e({}, {.slow_reader_timeout = absl::Seconds(30)});
  const auto sink = e.Submit(Generate(Prompt(5), 10));
  sink->state = SinkState::kFull;
  for (int i = 1; i <= 3; ++i) {
    e.engine->Resume(e.handle);
    EXPECT_TRUE(e.engine->Step());
    EXPECT_EQ(sink->ids.size(), static_cast<size_t>(i));
    EXPECT_FALSE(e.engine->Step());
    e.now += absl::Seconds(20);
  }
  EXPECT_EQ(e.observer.stalls, 3);
  e.now += absl::Seconds(10);
  e.engine->Step();
  EXPECT_EQ(DetailsOf(sink->status()).reason, "SLOW_READER");
  ExpectIdle(e);
}

TEST(EngineQueueTest, AFullSinkAtTheEndChangesNothing) {
  SteppedEngine e;
  const auto sink = e.Submit(Generate(Prompt(5), 1));
  sink->state = SinkState::kFull;
  e.Run();
  EXPECT_EQ(sink->status(), absl::OkStatus());
  EXPECT_EQ(e.observer.stalls, 0);
  ExpectIdle(e);
}

}  // namespace
}  // namespace ddl
