// Who runs, who waits and who is made to wait: pauses of slow readers, priorities, fairness, the
// prefix cache, and refusals by deadline.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/status_details.h"
#include "server/engine/engine.h"
#include "server/engine/scheduler.h"
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
  e.Step();
  e.Step();
  slow->state = SinkState::kFull;
  e.Step();
  EXPECT_EQ(slow->ids.size(), 3u);
  EXPECT_EQ(e.engine->load().paused_slow_reader, 1);
  EXPECT_EQ(e.engine->load().of(Task::kGenerate).running, 2) << "it has been started";
  EXPECT_EQ(e.observer.stalls, 1);
  e.Run();
  EXPECT_EQ(other->status(), absl::OkStatus()) << "nobody else waits for it";
  EXPECT_EQ(slow->ids.size(), 3u);
  EXPECT_FALSE(slow->end.has_value());
  EXPECT_FALSE(e.Step()) << "nothing to compute";

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
    for (int i = 0; i < 4; ++i) e.Step();
    slow->state = SinkState::kFull;
    e.Step();
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
  for (int i = 0; i < 3; ++i) e.Step();
  sink->state = SinkState::kFull;
  e.Step();
  EXPECT_EQ(e.engine->load().paused_slow_reader, 3);
  EXPECT_EQ(e.observer.stalls, 1) << "one client";
  EXPECT_FALSE(e.Step());
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
    e.Step();
    sink->state = SinkState::kFull;
    e.Step();
    if (row.wait > absl::ZeroDuration()) {
      e.now += row.wait - absl::Nanoseconds(1);
      EXPECT_FALSE(e.Step());
      EXPECT_FALSE(sink->end.has_value());
      e.now += absl::Nanoseconds(1);
    }
    if (row.cancel) e.engine->Cancel(e.handle);
    EXPECT_TRUE(e.Step());
    EXPECT_EQ(sink->status().code(), row.code);
    EXPECT_EQ(DetailsOf(sink->status()).reason, row.reason);
    EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair(row.finish_reason, 1)));
    EXPECT_THAT(e.observer.wasted_tokens, ElementsAre(Pair(row.wasted, 2)));
    e.engine->Resume(e.handle);
    EXPECT_FALSE(e.Step());
    ExpectIdle(e);
  }
}

TEST(EngineQueueTest, ResumingStartsTheTimeoutAnew) {
  SteppedEngine e({}, {.slow_reader_timeout = absl::Seconds(30)});
  const auto sink = e.Submit(Generate(Prompt(5), 10));
  sink->state = SinkState::kFull;
  for (int i = 1; i <= 3; ++i) {
    e.engine->Resume(e.handle);
    EXPECT_TRUE(e.Step());
    EXPECT_EQ(sink->ids.size(), static_cast<size_t>(i));
    EXPECT_FALSE(e.Step());
    e.now += absl::Seconds(20);
  }
  EXPECT_EQ(e.observer.stalls, 3);
  e.now += absl::Seconds(10);
  e.Step();
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

// --- Priorities and fairness ---------------------------------------------------------------

// Requests of one token, each in a step of its own, in the order in which they end.
TEST(EngineQueueTest, WhoWaitsRisesAClass) {
  struct Row {
    const char* name;
    absl::Duration aging;
    // High-priority requests that are served before the one of this priority, of 30 that keep
    // coming, one a second.
    Priority priority;
    int before;
  };
  const Row rows[] = {
      {"high: first come first served", absl::Seconds(10), Priority::kHigh, 0},
      {"normal: one class to rise", absl::Seconds(10), Priority::kNormal, 10},
      {"low: two", absl::Seconds(10), Priority::kLow, 20},
      {"never", absl::Hours(1), Priority::kNormal, 30},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e({.max_sequences = 1, .max_step_tokens = 1}, {.priority_aging = row.aging});
    e.runner->on_forward = [&e](auto) {
      e.now += absl::Seconds(1);
      return absl::OkStatus();
    };
    const auto submit = [&e](Priority priority) {
      Request request = Generate({1}, 1);
      request.priority = priority;
      return e.Submit(std::move(request));
    };
    const auto waits = submit(row.priority);
    int before = 0;
    for (int i = 0; i < 30; ++i) {
      submit(Priority::kHigh);
      e.Step();
      if (!waits->end.has_value()) ++before;
    }
    EXPECT_EQ(before, row.before);
    e.Run();
    ExpectIdle(e);
  }
}

TEST(EngineQueueTest, NeitherKindStarvesTheOther) {
  // A stream of prompts and a stream of inputs, each more than the engine can take.
  for (const bool embeds_first : {false, true}) {
    SteppedEngine e({.kv_num_blocks = 24, .max_sequences = SlotsFor(4), .max_step_tokens = 16},
                    {.max_running_sequences = 4, .max_waiting_requests = 1000});
    const auto submit = [&](int i, bool embeds) {
      e.Submit(embeds ? Embed({Prompt(12, 2 * i), Prompt(12, 2 * i + 1)}, Pooling::kMean)
                      : Generate(Prompt(12, i + 500), 2));
    };
    for (int i = 0; i < 150; ++i) submit(i, embeds_first);
    for (int i = 0; i < 150; ++i) submit(i, !embeds_first);
    for (int i = 0; i < 100; ++i) e.Step();
    const auto generated = static_cast<double>(e.observer.prompt_tokens[Task::kGenerate]);
    const auto embedded = static_cast<double>(e.observer.prompt_tokens[Task::kEmbed]);
    EXPECT_NEAR(generated / (generated + embedded), 0.5, 0.05)
        << generated << " of prompts, " << embedded << " of inputs";
    e.Run();
    ExpectIdle(e);
  }
}

TEST(EngineQueueTest, LongPromptsAndManyInputsDoNotStallAStream) {
  struct Row {
    const char* name;
    Request load;
    double slowdown;
  };
  std::vector<std::vector<TokenId>> inputs;
  for (int32_t i = 0; i < 500; ++i) inputs.push_back(Prompt(10, i));
  const Row rows[] = {
      {"a prompt of 1000 tokens", Generate(Prompt(1000), 1), 2.0},
      {"an Embed of 500 inputs", Embed(inputs, Pooling::kMean), 2.0},
      {"both slowdowns", Generate(Prompt(1000), 1), 1.5},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e({.kv_num_blocks = 1000, .max_sequences = SlotsFor(8), .max_step_tokens = 512},
                    {.max_running_sequences = 8,
                     .max_step_tokens = 512,
                     .max_context_length = 2000,
                     .max_decode_slowdown = row.slowdown});
    e.runner->on_forward = [&e](absl::Span<const SequenceChunk> chunks) {
      for (const SequenceChunk& chunk : chunks) {
        e.now += absl::Microseconds(100) * (static_cast<int>(chunk.tokens.size()) - chunk.start);
      }
      e.now += absl::Milliseconds(2);
      return absl::OkStatus();
    };
    const auto stream = e.Submit(Generate(Prompt(3), 400));
    for (int i = 0; i < 20; ++i) e.Step();
    e.Submit(Generate(Prompt(3, 1), 1));  // a mixed step, so that its cost is known
    for (int i = 0; i < 20; ++i) e.Step();
    e.observer.inter_token_latencies.clear();
    const auto load = e.Submit(row.load);
    e.Run();
    EXPECT_EQ(stream->status(), absl::OkStatus());
    EXPECT_EQ(load->status(), absl::OkStatus());
    absl::Duration longest;
    for (const absl::Duration gap : e.observer.inter_token_latencies) {
      longest = std::max(longest, gap);
    }
    // 2.1 ms alone.
    EXPECT_LE(longest, row.slowdown * absl::Microseconds(2100) * 1.05);
    EXPECT_GT(longest, row.slowdown * absl::Microseconds(2100) * 0.8) << "it was really loaded";
    ExpectIdle(e);
  }
}

// --- The prefix cache ----------------------------------------------------------------------

TEST(EngineQueueTest, FindsPrefixesAndComputesOnlyTheRest) {
  const auto common = [](int32_t length) { return Prompt(length, 5); };
  std::vector<TokenId> branches = common(8);
  branches.insert(branches.end(), {1, 2, 3, 4, 5});
  struct Row {
    const char* name;
    Request request;
    int32_t cached;  // of blocks of 4
    bool cache = true;
  };
  const auto without_cache = [](Request request) {
    ParamsOf(request).use_prefix_cache = false;
    return request;
  };
  const auto with_scores = [](Request request) {
    ParamsOf(request).prompt_logprobs = 0;
    return request;
  };
  const auto with_stats = [](Request request) {
    ParamsOf(request).ddl_stats = true;
    return request;
  };
  const auto several = [](Request request) {
    ParamsOf(request).n = 3;
    return request;
  };
  // After a prompt of 14 tokens and 4 more that were generated, 17 positions computed.
  const Row rows[] = {
      {"shorter than a block", Generate(common(3), 3), 0},
      {"one block, whose last token has to be computed", Generate(common(4), 3), 0},
      {"one block and a token", Generate(common(5), 3), 4},
      {"the same prompt", Generate(common(14), 3), 12},
      {"a longer one", Generate(common(30), 3), 12},
      {"one that branches off", Generate(branches, 3), 8},
      {"another", Generate(Prompt(14, 6), 3), 0},
      {"several completions", several(Generate(common(14), 3)), 12},
      {"the last token of an input", Embed({common(14)}), 12},
      {"told not to", without_cache(Generate(common(14), 3)), 0},
      {"no cache at all", Generate(common(14), 3), 0, false},
      {"every position is embedded", Embed({common(14)}, Pooling::kMean), 0},
      {"every position is scored", Score({common(14)}), 0},
      {"the prompt is scored", with_scores(Generate(common(14), 3)), 0},
      {"statistics", with_stats(Generate(common(14), 3)), 0},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine fresh({}, {.prefix_cache = false});
    const auto expected = fresh.Submit(row.request);
    fresh.Run();

    SteppedEngine e({}, {.prefix_cache = row.cache});
    e.Submit(Generate(common(14), 4));
    e.Run();
    EXPECT_EQ(e.engine->load().kv_blocks_cached, row.cache ? 4 : 0);
    e.observer.query_tokens = 0;
    e.observer.prompt_tokens.clear();
    const auto sink = e.Submit(row.request);
    e.Run();
    EXPECT_EQ(sink->end->usage.cached_tokens, row.cached);
    EXPECT_EQ(sink->start->cached_tokens, row.cached);
    EXPECT_EQ(e.observer.hit_tokens, row.cached);
    int64_t computed = 0;
    int64_t cached = 0;
    for (const auto& [task, tokens] : e.observer.prompt_tokens) computed += tokens;
    for (const auto& [task, tokens] : e.observer.cached_tokens) cached += tokens;
    EXPECT_EQ(cached, row.cached);
    EXPECT_EQ(computed + cached, sink->end->usage.prompt_tokens);
    EXPECT_EQ(sink->completions, expected->completions);
    EXPECT_EQ(sink->embeddings, expected->embeddings);
    EXPECT_EQ(sink->scores.size(), expected->scores.size());
    ExpectIdle(e);
  }
}

TEST(EngineQueueTest, ContinuesAConversationFromItsCompletion) {
  SteppedEngine e;
  const auto first = e.Submit(Generate(Prompt(9), 8));
  e.Run();
  std::vector<TokenId> longer = Prompt(9);
  longer.insert(longer.end(), first->ids.begin(), first->ids.end());
  longer.push_back(42);
  const auto second = e.Submit(Generate(longer, 5));
  e.Run();
  EXPECT_EQ(second->end->usage.cached_tokens, 16) << "16 of the 17 tokens have been computed";
  EXPECT_EQ(second->ids, ExpectedTokens(longer, 5));
  ExpectIdle(e);
}

TEST(EngineQueueTest, RequestsThatRunShareBlocks) {
  SteppedEngine e;
  const auto first = e.Submit(Generate(Prompt(17), 10));
  e.Step();
  EXPECT_EQ(e.engine->load().kv_blocks_used, 5);
  const auto second = e.Submit(Generate(Prompt(17), 10));
  e.Step();
  EXPECT_EQ(e.engine->load().kv_blocks_used, 6) << "4 of 5 are the same";
  e.Run();
  EXPECT_EQ(first->ids, ExpectedTokens(Prompt(17), 10));
  EXPECT_EQ(second->ids, first->ids);
  ExpectIdle(e);
}

TEST(EngineQueueTest, EvictsCachedBlocksForRunningSequences) {
  SteppedEngine e({.kv_num_blocks = 8});
  for (int32_t i = 0; i < 20; ++i) {
    const auto sink = e.Submit(Generate(Prompt(20, i), 10));
    e.Run();
    EXPECT_EQ(sink->ids, ExpectedTokens(Prompt(20, i), 10)) << i;
    EXPECT_EQ(sink->end->timings.preemptions, 0);
    EXPECT_EQ(e.engine->load().kv_blocks_cached, 7);
  }
  ExpectIdle(e);
}

TEST(EngineQueueTest, AfterAPreemptionFindsItsOwnBlocks) {
  SteppedEngine e({.kv_num_blocks = 5});
  const auto a = e.Submit(Generate(Prompt(7), 4));
  const auto b = e.Submit(Generate(Prompt(7, 1), 3));
  e.Run();
  EXPECT_EQ(a->end->timings.preemptions, 0);
  EXPECT_EQ(b->end->timings.preemptions, 1);
  EXPECT_EQ(b->ids, ExpectedTokens(Prompt(7, 1), 3));
  // All of it but the token sampled last was still there.
  EXPECT_THAT(e.observer.wasted_tokens, testing::IsEmpty());
  EXPECT_EQ(b->end->usage.cached_tokens, 0) << "it had none when it came";
  EXPECT_EQ(e.observer.prompt_tokens[Task::kGenerate], 14);
  ExpectIdle(e);
}

// --- Deadlines that cannot be met ----------------------------------------------------------

TEST(EngineQueueTest, RefusesWhatCannotStartInTime) {
  struct Row {
    const char* name;
    int waiting;
    Priority priority;
    absl::Duration deadline;
    bool refused;
    int32_t room = 1;  // requests that run at a time
  };
  // A request starts every 2 seconds.
  const Row rows[] = {
      {"idle", 0, Priority::kNormal, absl::Milliseconds(1), false},
      {"long enough", 4, Priority::kNormal, absl::Seconds(11), false},
      {"too short", 4, Priority::kNormal, absl::Seconds(9), true},
      {"too short, but it goes before them", 4, Priority::kHigh, absl::Seconds(9), false},
      {"too short, and it goes after them", 4, Priority::kLow, absl::Seconds(9), true},
      {"none", 4, Priority::kNormal, absl::InfiniteDuration(), false},
      {"there is room for it", 4, Priority::kNormal, absl::Seconds(9), false, 5},
      {"there is room for those before it", 5, Priority::kNormal, absl::Seconds(9), true, 5},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e({.max_sequences = 5, .max_step_tokens = 5},
                    {.max_running_sequences = row.room});
    e.runner->on_forward = [&e](auto) {
      e.now += absl::Seconds(2);
      return absl::OkStatus();
    };
    for (int i = 0; i < 40; ++i) {
      e.Submit(Generate({1}, 1));
      e.Step();
    }
    for (int i = 0; i < row.waiting; ++i) e.Submit(Generate({1}, 1));
    Request request = Generate({1}, 1);
    request.priority = row.priority;
    request.deadline = e.now + row.deadline;
    const auto sink = e.Submit(std::move(request));
    EXPECT_EQ(sink == nullptr, row.refused);
    if (row.refused) {
      EXPECT_EQ(e.refusal.code(), StatusCode::kResourceExhausted);
      EXPECT_EQ(DetailsOf(e.refusal).reason, "DEADLINE_INFEASIBLE");
      EXPECT_NEAR(absl::ToDoubleSeconds(*DetailsOf(e.refusal).retry_after), 2 * row.waiting, 0.5);
      EXPECT_THAT(e.observer.rejected, ElementsAre(Pair("deadline_infeasible", 1)));
    }
    e.Run();
    if (row.waiting == 0) {
      EXPECT_EQ(sink->status().code(), StatusCode::kDeadlineExceeded) << "it was tried";
    }
    ExpectIdle(e);
  }
}

TEST(EngineQueueTest, CompletionsNeedNotFitTogether) {
  // 24 tokens: one completion, or three that share 8 of their prompt's 9 tokens, but not three
  // of 20.
  SteppedEngine e({.kv_num_blocks = 6});
  Request request = Generate(Prompt(9), 12);
  ParamsOf(request).n = 3;
  ParamsOf(request).sampling = {.temperature = 1, .seed = 5};
  const auto sink = e.Submit(std::move(request));
  e.Run();
  ASSERT_EQ(sink->status(), absl::OkStatus());
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(sink->completions[i],
              ExpectedTokens(Prompt(9), 12, {.temperature = 1, .seed = 5u + i}));
  }
  Request larger = Generate(Prompt(9), 17);
  ParamsOf(larger).n = 3;
  EXPECT_EQ(e.Submit(std::move(larger)), nullptr);
  EXPECT_EQ(DetailsOf(e.refusal).reason, "TOO_LARGE");
  EXPECT_THAT(std::string(e.refusal.message()),
              testing::HasSubstr("it needs 25 tokens, the cache has 24"));
  ExpectIdle(e);
}

}  // namespace
}  // namespace ddl
