#include "server/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status_details.h"
#include "tests/server/engine/engine_fixture.h"

namespace ddl {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

// --- Generate ------------------------------------------------------------------------------

TEST(EngineTest, GeneratesTheModelsTokens) {
  SteppedEngine e;
  const auto sink = e.Submit(Generate(Prompt(10), 5));
  EXPECT_EQ(e.Run(), 5);
  EXPECT_EQ(sink->ids, ExpectedTokens(Prompt(10), 5));
  ASSERT_EQ(sink->status(), absl::OkStatus());
  EXPECT_EQ(sink->end->completions.front().finish_reason, FinishReason::kLength);
  EXPECT_EQ(sink->end->usage.prompt_tokens, 10);
  EXPECT_EQ(sink->end->usage.completion_tokens, 5);
  EXPECT_EQ(sink->num_deltas, 5) << "each token travels in the step that made it";
  double logprobs = 0;
  for (const SampledToken& token : sink->tokens) logprobs += token.logprob;
  EXPECT_EQ(sink->end->completions.front().cumulative_logprob, logprobs);
  ExpectIdle(e);
}

TEST(EngineTest, KnowsHowLongAStepRuns) {
  SteppedEngine e;
  std::vector<absl::Duration> running;
  e.runner->on_forward = [&](absl::Span<const SequenceChunk>) {
    running.push_back(e.engine->running_step());
    e.now += absl::Seconds(7);
    running.push_back(e.engine->running_step());
    return absl::OkStatus();
  };
  EXPECT_EQ(e.engine->running_step(), absl::ZeroDuration());
  e.Submit(Generate(Prompt(10), 2));
  e.Run();
  EXPECT_THAT(running, ElementsAre(absl::ZeroDuration(), absl::Seconds(7), absl::ZeroDuration(),
                                   absl::Seconds(7)));
  e.now += absl::Seconds(7);
  EXPECT_EQ(e.engine->running_step(), absl::ZeroDuration()) << "between steps";
}

TEST(EngineTest, PassesTheSamplingOn) {
  SteppedEngine e;
  Request request = Generate(Prompt(4), 6);
  const SamplingParams sampling = {.temperature = 0.8f, .top_k = 5, .top_p = 0.9f, .seed = 42};
  ParamsOf(request).sampling = sampling;
  ParamsOf(request).logprobs = 3;
  std::vector<SampleRequest> seen;
  e.runner->on_forward = [&](absl::Span<const SequenceChunk> chunks) {
    seen.push_back(*chunks[0].sample);
    EXPECT_EQ(seen.back().params->top_k, 5);
    EXPECT_EQ(seen.back().params->top_p, 0.9f);
    EXPECT_THAT(seen.back().prompt, IsEmpty()) << "nothing is penalised";
    return absl::OkStatus();
  };
  const auto sink = e.Submit(std::move(request));
  e.Run();
  EXPECT_EQ(sink->ids, ExpectedTokens(Prompt(4), 6, sampling));
  ASSERT_EQ(seen.size(), 6u);
  for (size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i].index, i);
    EXPECT_EQ(seen[i].vocab_size, 50);
    EXPECT_EQ(sink->tokens[i].top.size(), 3u);
  }
}

TEST(EngineTest, EndsForEachReason) {
  const std::vector<TokenId> expected = ExpectedTokens(Prompt(6), 8);
  struct Row {
    const char* name;
    std::function<void(GenerateParams&)> set;
    int32_t context;
    FinishReason reason;
    int64_t tokens;
    const char* label;
    std::vector<TokenId> eos = {};
  };
  const Row rows[] = {
      {"length", [](auto& p) { p.stopping.max_tokens = 8; }, 100, FinishReason::kLength, 8,
       "length"},
      {"length 1", [](auto& p) { p.stopping.max_tokens = 1; }, 100, FinishReason::kLength, 1,
       "length"},
      {"context", [](auto& p) { p.stopping.max_tokens = 99; }, 10, FinishReason::kContext, 4,
       "context"},
      {"one token short of context", [](auto& p) { p.stopping.max_tokens = 3; }, 10,
       FinishReason::kLength, 3, "length"},
      {"both at once", [](auto& p) { p.stopping.max_tokens = 4; }, 10, FinishReason::kLength, 4,
       "length"},
      {"a prompt of context - 1", [](auto& p) { p.stopping.max_tokens = 9; }, 7,
       FinishReason::kContext, 1, "context"},
      {"stop token",
       [&](auto& p) {
         p.stopping.stop_token_ids = {49, expected[3]};
       },
       100, FinishReason::kStop, 4, "stop"},
      {"stop token as the last allowed",
       [&](auto& p) {
         p.stopping.stop_token_ids = {expected[3]};
         p.stopping.max_tokens = 4;
       },
       100, FinishReason::kStop, 4, "stop"},
      {"stop token first", [&](auto& p) { p.stopping.stop_token_ids = {expected[0]}; }, 100,
       FinishReason::kStop, 1, "stop"},
      {"one of several end tokens",
       [](auto&) {},
       100,
       FinishReason::kEos,
       4,
       "eos",
       {49, expected[3]}},
      {"another of them first",
       [](auto&) {},
       100,
       FinishReason::kEos,
       1,
       "eos",
       {expected[3], expected[0]}},
      {"an end token that is a stop token",
       [&](auto& p) { p.stopping.stop_token_ids = {expected[3]}; },
       100,
       FinishReason::kEos,
       4,
       "eos",
       {expected[3]}},
      {"end tokens ignored",
       [](auto& p) { p.stopping.ignore_eos = true; },
       100,
       FinishReason::kLength,
       8,
       "length",
       {expected[0], expected[3]}},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e({}, {.max_context_length = row.context, .eos_token_ids = row.eos});
    Request request = Generate(Prompt(6), 8);
    row.set(ParamsOf(request));
    const auto sink = e.Submit(std::move(request));
    e.Run();
    ASSERT_EQ(sink->status(), absl::OkStatus());
    EXPECT_EQ(sink->end->completions.front().finish_reason, row.reason);
    EXPECT_EQ(sink->end->usage.completion_tokens, row.tokens);
    EXPECT_THAT(sink->ids,
                testing::ElementsAreArray(expected.begin(), expected.begin() + row.tokens));
    EXPECT_EQ(sink->end->completions.front().matched_token_id.has_value(),
              row.reason == FinishReason::kStop);
    EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair(row.label, 1)));
    ExpectIdle(e);
  }
}

TEST(EngineTest, StopAndEndTokensAreBannedUpToMinTokens) {
  const TokenId stop = ExpectedTokens(Prompt(6), 1)[0];
  for (const int32_t min_tokens : {0, 1, 2, 5}) {
    SCOPED_TRACE(min_tokens);
    std::vector<TokenId> tokens = Prompt(6);
    std::vector<TokenId> expected;
    const std::vector<TokenId> banned = {stop};
    while (expected.size() < 12 && (expected.empty() || expected.back() != stop)) {
      const SamplingParams greedy = {.temperature = 0};
      SampleRequest sample;
      sample.params = &greedy;
      sample.index = expected.size();
      sample.vocab_size = 50;
      if (static_cast<int32_t>(expected.size()) < min_tokens) sample.banned = banned;
      expected.push_back(FakeModelRunner::Next(tokens, sample).id);
      tokens.push_back(expected.back());
    }
    for (const bool is_eos : {false, true}) {
      SteppedEngine e({}, {.eos_token_ids = is_eos ? banned : std::vector<TokenId>()});
      Request request = Generate(Prompt(6), 12);
      if (!is_eos) ParamsOf(request).stopping.stop_token_ids = {stop};
      ParamsOf(request).stopping.min_tokens = min_tokens;
      const auto sink = e.Submit(std::move(request));
      e.Run();
      EXPECT_EQ(sink->ids, expected) << is_eos;
    }
  }
}

// --- The same whatever else runs -----------------------------------------------------------

struct Mixture {
  std::vector<Request> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
};

std::vector<Request> MixedRequests() {
  std::vector<Request> requests;
  for (int32_t i = 0; i < 12; ++i) {
    if (i % 3 == 2) {
      requests.push_back(Embed({Prompt(i + 1, i), Prompt(2 * i, i + 50), Prompt(1, i)},
                               i % 2 == 0 ? Pooling::kMean : Pooling::kNone));
    } else {
      requests.push_back(Generate(Prompt(2 * i + 1, i), 3 + i));
      ParamsOf(requests.back()).sampling = {.temperature = i % 2 == 0 ? 0.0f : 1.0f,
                                            .seed = 7u + i};
    }
    requests.back().priority = static_cast<Priority>(i % 3);
  }
  return requests;
}

TEST(EngineTest, ResultsDoNotDependOnBatchChunksOrPreemption) {
  std::vector<std::shared_ptr<RecordingSink>> alone;
  for (Request& request : MixedRequests()) {
    SteppedEngine e;
    alone.push_back(e.Submit(std::move(request)));
    e.Run();
    ASSERT_EQ(alone.back()->status(), absl::OkStatus());
  }

  struct Row {
    const char* name;
    FakeModelRunner::Options model;
    bool preempts;
  };
  const Row rows[] = {
      {"one batch", {.kv_num_blocks = 200, .max_sequences = 32, .max_step_tokens = 500}, false},
      {"one slot", {.kv_num_blocks = 200, .max_sequences = 1, .max_step_tokens = 500}, false},
      {"chunks of 1", {.kv_num_blocks = 200, .max_sequences = 1, .max_step_tokens = 1}, false},
      {"chunks of 3", {.kv_num_blocks = 200, .max_sequences = 3, .max_step_tokens = 3}, false},
      {"chunks of 7", {.kv_num_blocks = 200, .max_sequences = 4, .max_step_tokens = 7}, false},
      {"a small cache", {.kv_num_blocks = 11, .max_sequences = 9, .max_step_tokens = 64}, true},
      {"blocks of one token",
       {.kv_block_size = 1, .kv_num_blocks = 40, .max_sequences = 9, .max_step_tokens = 9},
       true},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e(row.model);
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (Request& request : MixedRequests()) sinks.push_back(e.Submit(std::move(request)));
    e.Run();
    int32_t preemptions = 0;
    for (size_t i = 0; i < sinks.size(); ++i) {
      SCOPED_TRACE(i);
      EXPECT_EQ(sinks[i]->status(), absl::OkStatus());
      EXPECT_EQ(sinks[i]->ids, alone[i]->ids);
      EXPECT_EQ(sinks[i]->embeddings, alone[i]->embeddings);
      preemptions += sinks[i]->end->timings.preemptions;
    }
    EXPECT_EQ(preemptions > 0, row.preempts);
    EXPECT_EQ(preemptions, e.observer.preemptions);
    EXPECT_EQ(e.observer.wasted_tokens.contains("preempt_recompute"), row.preempts);
    ExpectIdle(e);
  }
}

TEST(EngineTest, PreemptedTokensAreCountedOnce) {
  SteppedEngine e({.kv_num_blocks = 5}, {.prefix_cache = false});
  const auto a = e.Submit(Generate(Prompt(7), 4));
  const auto b = e.Submit(Generate(Prompt(7, 1), 3));
  e.Run();
  EXPECT_EQ(b->ids, ExpectedTokens(Prompt(7, 1), 3));
  EXPECT_EQ(a->end->timings.preemptions, 0);
  EXPECT_EQ(b->end->timings.preemptions, 1);
  EXPECT_EQ(e.observer.prompt_tokens[Task::kGenerate], 14);
  EXPECT_EQ(e.observer.generated_tokens, 7);
  // Its prompt and the first token had been computed when it was preempted.
  EXPECT_THAT(e.observer.wasted_tokens, ElementsAre(Pair("preempt_recompute", 8)));
  ExpectIdle(e);
}

TEST(EngineTest, DecodesAndPrefillsShareSteps) {
  SteppedEngine e;
  e.Submit(Generate(Prompt(4), 10));
  ASSERT_TRUE(e.Step());
  e.Submit(Generate(Prompt(20, 1), 2));
  e.Submit(Embed({Prompt(5, 2), Prompt(6, 3)}));
  ASSERT_TRUE(e.Step());
  const StepStats& step = e.observer.steps.back();
  EXPECT_EQ(step.sequences, 4);
  EXPECT_EQ(step.decode_tokens, 1);
  EXPECT_EQ(step.prefill_tokens, 31);
}

// --- Embed ---------------------------------------------------------------------------------

TEST(EngineTest, EmbedsEveryInput) {
  const std::vector<std::vector<TokenId>> inputs = {Prompt(1), Prompt(9, 1), Prompt(30, 2),
                                                    Prompt(4, 3)};
  SteppedEngine e({.max_step_tokens = 8});
  const auto last = e.Submit(Embed(inputs));
  const auto all = e.Submit(Embed(inputs, Pooling::kNone));
  e.Run();
  ASSERT_EQ(last->status(), absl::OkStatus());
  ASSERT_EQ(all->status(), absl::OkStatus());
  EXPECT_EQ(last->end->usage.prompt_tokens, 44);
  EXPECT_EQ(last->end->usage.completion_tokens, 0);
  EXPECT_TRUE(last->end->completions.empty());
  EXPECT_EQ(last->num_embeddings, 4);
  for (int32_t i = 0; i < 4; ++i) {
    EXPECT_THAT(last->embeddings[i], ElementsAre(FakeModelRunner::Hidden(inputs[i]))) << i;
    ASSERT_EQ(all->embeddings[i].size(), inputs[i].size()) << i;
    for (size_t k = 0; k < inputs[i].size(); ++k) {
      EXPECT_EQ(all->embeddings[i][k],
                FakeModelRunner::Hidden(absl::MakeSpan(inputs[i]).subspan(0, k + 1)));
    }
  }
  EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair("stop", 2)));
  EXPECT_EQ(e.observer.prompt_tokens[Task::kEmbed], 88);
  EXPECT_EQ(e.observer.generated_tokens, 0);
  ExpectIdle(e);
}

TEST(EngineTest, AsksForNoMoreVectorsThanItNeeds) {
  for (const auto& [pooling, rows] : {std::pair{Pooling::kLastToken, 1}, {Pooling::kMean, 20}}) {
    SteppedEngine e({.max_step_tokens = 8});
    int asked = 0;
    e.runner->on_forward = [&asked](absl::Span<const SequenceChunk> chunks) {
      for (const SequenceChunk& chunk : chunks) {
        EXPECT_FALSE(chunk.sample.has_value());
        if (chunk.hidden == Rows::kLast) ++asked;
        if (chunk.hidden == Rows::kAll)
          asked += static_cast<int>(chunk.tokens.size()) - chunk.start;
      }
      return absl::OkStatus();
    };
    e.Submit(Embed({Prompt(20)}, pooling));
    e.Run();
    EXPECT_EQ(asked, rows);
  }
}

// --- Admission -----------------------------------------------------------------------------

TEST(EngineTest, RefusesAtOnce) {
  struct Row {
    const char* name;
    std::function<void(SteppedEngine&)> before;
    Request request;
    StatusCode code;
    const char* reason;  // of the details
    const char* label;   // of the metric
    bool retry;
  };
  const auto with_deadline = [](Request request, absl::Time deadline) {
    request.deadline = deadline;
    return request;
  };
  const absl::Time now = absl::FromUnixSeconds(1'000'000);
  const auto nothing = [](SteppedEngine&) {};
  // Slots for 2, and 3 more may wait; 20 tokens may wait; the cache holds 48 tokens.
  const Row rows[] = {
      {"the queue is full",
       [](SteppedEngine& e) {
         for (int i = 0; i < 5; ++i) ASSERT_NE(e.Submit(Generate(Prompt(1), 1)), nullptr);
       },
       Generate(Prompt(1), 1), StatusCode::kResourceExhausted, "QUEUE_FULL", "queue_full", true},
      {"the queue is full while some run",
       [](SteppedEngine& e) {
         for (int i = 0; i < 5; ++i) {
           ASSERT_NE(e.Submit(Generate(Prompt(1), 20)), nullptr);
           e.Step();
         }
       },
       Embed({Prompt(1)}), StatusCode::kResourceExhausted, "QUEUE_FULL", "queue_full", true},
      {"too many tokens wait",
       [](SteppedEngine& e) {
         ASSERT_NE(e.Submit(Embed({Prompt(10), Prompt(5)})), nullptr);
       },
       Generate(Prompt(6), 1), StatusCode::kResourceExhausted, "TOKENS_FULL", "tokens_full", true},
      {"a completion that outgrows the cache", nothing, Generate(Prompt(6), 44),
       StatusCode::kFailedPrecondition, "TOO_LARGE", "too_large", false},
      {"one input of many that outgrows the cache", nothing,
       Embed({Prompt(1), Prompt(49), Prompt(2)}), StatusCode::kFailedPrecondition, "TOO_LARGE",
       "too_large", false},
      {"the deadline is now", nothing, with_deadline(Generate(Prompt(1), 1), now),
       StatusCode::kDeadlineExceeded, "", "deadline_infeasible", false},
      {"the deadline is past", nothing,
       with_deadline(Generate(Prompt(1), 1), now - absl::Seconds(1)), StatusCode::kDeadlineExceeded,
       "", "deadline_infeasible", false},
      {"draining", [](SteppedEngine& e) { e.engine->StopAdmission(); }, Generate(Prompt(1), 1),
       StatusCode::kUnavailable, "DRAINING", "draining", true},
      {"stopped", [](SteppedEngine& e) { e.engine->Stop(); }, Generate(Prompt(1), 1),
       StatusCode::kUnavailable, "DRAINING", "draining", true},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e({.kv_num_blocks = 12, .max_sequences = 2, .max_step_tokens = 10},
                    {.max_running_sequences = 2,
                     .max_waiting_requests = 3,
                     .max_waiting_tokens = 20,
                     .max_step_tokens = 10});
    row.before(e);
    auto sink = std::make_shared<RecordingSink>();
    const absl::Status status = e.engine->Submit(row.request, sink).status();
    EXPECT_EQ(status.code(), row.code) << status;
    EXPECT_EQ(DetailsOf(status).reason, row.reason);
    EXPECT_EQ(DetailsOf(status).retry_after.has_value(), row.retry);
    EXPECT_THAT(e.observer.rejected, ElementsAre(Pair(row.label, 1)));
    e.Run();
    EXPECT_FALSE(sink->end.has_value()) << "a refused request's sink is never called";
    ExpectIdle(e);
  }
}

TEST(EngineTest, AdmitsUpToTheBounds) {
  const FakeModelRunner::Options model = {
      .kv_num_blocks = 12, .max_sequences = 2, .max_step_tokens = 10};
  const EngineOptions options = {.max_running_sequences = 2,
                                 .max_waiting_requests = 3,
                                 .max_waiting_tokens = 20,
                                 .max_step_tokens = 10};
  const std::vector<std::vector<Request>> rows = {
      {Generate(Prompt(6), 43)},                          // just fits the cache
      {Embed({Prompt(48), Prompt(48)})},                  // each on its own
      {Generate(Prompt(6), 4), Generate(Prompt(14), 4)},  // 20 tokens wait
      {Embed({Prompt(30)})},                              // more, but nobody waits
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    SCOPED_TRACE(i);
    SteppedEngine e(model, options);
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (const Request& request : rows[i]) sinks.push_back(e.Submit(request));
    e.Run();
    for (const auto& sink : sinks) {
      ASSERT_NE(sink, nullptr) << e.refusal;
      EXPECT_EQ(sink->status(), absl::OkStatus());
    }
    ExpectIdle(e);
  }
}

TEST(EngineTest, RetryInfoFollowsTheMeasuredRate) {
  SteppedEngine e({.max_sequences = 1, .max_step_tokens = 10},
                  {.max_running_sequences = 1, .max_waiting_requests = 4, .max_step_tokens = 10});
  // A request of one token takes one step, and a step takes 2 seconds.
  e.runner->on_forward = [&e](auto) {
    e.now += absl::Seconds(2);
    return absl::OkStatus();
  };
  for (int i = 0; i < 40; ++i) {
    while (e.Submit(Generate(Prompt(1), 1)) != nullptr) {
    }
    e.Step();
  }
  while (e.Submit(Generate(Prompt(1), 1)) != nullptr) {
  }
  // 5 wait, a place in 2 seconds each.
  const absl::Duration retry = *DetailsOf(e.refusal).retry_after;
  EXPECT_NEAR(absl::ToDoubleSeconds(retry), 10, 0.5);
  EXPECT_NEAR(absl::ToDoubleSeconds(e.engine->load().queue_delay), 10, 0.5);
}

TEST(EngineTest, OptionsThatCannotWorkAreRefused) {
  struct Row {
    EngineOptions options;
    const char* message;
  };
  const Row rows[] = {
      {{.max_running_sequences = 0}, "max_running_sequences must be at least 1, found 0"},
      {{.max_waiting_requests = -1}, "max_waiting_requests must be at least 0, found -1"},
      {{.max_waiting_tokens = -1}, "max_waiting_tokens must be at least 0, found -1"},
      {{.max_context_length = 1}, "max_context_length must be at least 2, found 1"},
      {{.max_running_sequences = 8, .max_step_tokens = 7}, "must be at least 8, found 7"},
  };
  for (const Row& row : rows) {
    CountingObserver observer;
    const auto engine =
        Engine::Create(row.options, std::make_unique<FakeModelRunner>(FakeModelRunner::Options{}),
                       nullptr, &observer);
    EXPECT_EQ(engine.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(engine.status().message()), HasSubstr(row.message));
  }
}

TEST(EngineTest, TheRunnersSlotsBoundTheBatch) {
  SteppedEngine e({.max_sequences = 3}, {.max_running_sequences = 64});
  EXPECT_EQ(e.engine->options().max_running_sequences, 3);
  for (int i = 0; i < 7; ++i) e.Submit(Generate(Prompt(1, i), 5));
  e.Run();
  EXPECT_EQ(e.runner->largest_step_sequences(), 3);
  ExpectIdle(e);
}

// --- Cancellation --------------------------------------------------------------------------

TEST(EngineTest, CancelsWhileQueued) {
  SteppedEngine e;
  const auto sink = e.Submit(Generate(Prompt(3), 5));
  e.engine->Cancel(e.handle);
  e.Run();
  EXPECT_EQ(sink->status().code(), StatusCode::kCancelled);
  EXPECT_EQ(e.runner->num_steps(), 0);
  EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair("cancel", 1)));
  ExpectIdle(e);
}

TEST(EngineTest, CancelsWhileRunning) {
  SteppedEngine e;
  const auto sink = e.Submit(Generate(Prompt(3), 200));
  const RequestHandle handle = e.handle;
  const auto other = e.Submit(Generate(Prompt(5), 8));
  for (int i = 0; i < 4; ++i) e.Step();
  e.engine->Cancel(handle);
  e.engine->Cancel(handle);
  sink->on_end = [&] {
    EXPECT_EQ(e.observer.last_load.kv_blocks_used, 3) << "the other one's, with its next position";
  };
  e.Step();
  EXPECT_EQ(sink->status().code(), StatusCode::kCancelled);
  EXPECT_EQ(sink->ids.size(), 4u);
  EXPECT_EQ(sink->end->usage.completion_tokens, 4);
  e.Run();
  EXPECT_EQ(other->ids, ExpectedTokens(Prompt(5), 8));
  EXPECT_THAT(e.observer.wasted_tokens, ElementsAre(Pair("cancel", 4)));
  EXPECT_EQ(e.observer.generated_tokens, 12);
  ExpectIdle(e);
}

TEST(EngineTest, CancelsInTheMiddleOfAPromptAndOfAnEmbed) {
  SteppedEngine e({.max_step_tokens = 8});
  const auto generate = e.Submit(Generate(Prompt(30), 5));
  const RequestHandle first = e.handle;
  const auto embed = e.Submit(Embed({Prompt(2), Prompt(3), Prompt(20)}));
  const RequestHandle second = e.handle;
  e.Step();
  e.engine->Cancel(first);
  e.Step();
  EXPECT_EQ(generate->status().code(), StatusCode::kCancelled);
  EXPECT_EQ(embed->num_embeddings, 2);
  e.engine->Cancel(second);
  e.Run();
  EXPECT_EQ(embed->status().code(), StatusCode::kCancelled);
  EXPECT_EQ(embed->num_embeddings, 2);
  EXPECT_EQ(e.observer.prompt_tokens[Task::kGenerate], 8);
  EXPECT_EQ(e.observer.prompt_tokens[Task::kEmbed], 8);
  ExpectIdle(e);
}

TEST(EngineTest, CancellingWhatHasEndedDoesNothing) {
  SteppedEngine e;
  const auto sink = e.Submit(Generate(Prompt(3), 1));
  const RequestHandle handle = e.handle;
  e.Run();
  e.engine->Cancel(handle);
  e.engine->Cancel(RequestHandle{.id = 12345});
  const auto next = e.Submit(Generate(Prompt(3), 1));
  e.Run();
  EXPECT_EQ(sink->status(), absl::OkStatus());
  EXPECT_EQ(next->status(), absl::OkStatus());
  EXPECT_EQ(sink->calls_after_end, 0);
}

TEST(EngineTest, SinksMaySubmitAndCancel) {
  SteppedEngine e;
  const auto first = e.Submit(Generate(Prompt(3), 50));
  const RequestHandle handle = e.handle;
  const auto second = e.Submit(Generate(Prompt(4), 2));
  std::shared_ptr<RecordingSink> third;
  second->on_end = [&] {
    e.engine->Cancel(handle);
    third = e.Submit(Generate(Prompt(5), 2));
  };
  e.Run();
  EXPECT_EQ(first->status().code(), StatusCode::kCancelled);
  EXPECT_EQ(first->ids.size(), 2u);
  EXPECT_EQ(third->ids, ExpectedTokens(Prompt(5), 2));
  ExpectIdle(e);
}

// --- Deadlines -----------------------------------------------------------------------------

TEST(EngineTest, DeadlinesEndRequestsWhereverTheyAre) {
  struct Row {
    const char* name;
    Request request;
    absl::Duration deadline;  // from now; a step takes a second
    size_t tokens;
    int steps;
  };
  const Row rows[] = {
      {"while queued", Generate(Prompt(4), 3), absl::Milliseconds(1), 0, 0},
      {"in the first step", Generate(Prompt(4), 3), absl::Milliseconds(999), 0, 1},
      {"at the very end of the first step", Generate(Prompt(4), 3), absl::Seconds(1), 0, 1},
      {"in the middle of the prompt", Generate(Prompt(30), 3), absl::Milliseconds(2500), 0, 3},
      {"while decoding", Generate(Prompt(4), 9), absl::Milliseconds(4500), 4, 5},
      {"in the last step", Generate(Prompt(4), 3), absl::Milliseconds(2500), 2, 3},
      {"in an embed", Embed({Prompt(8), Prompt(9, 1)}), absl::Milliseconds(2500), 0, 3},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e({.max_step_tokens = 8});
    e.runner->on_forward = [&e](auto) {
      e.now += absl::Seconds(1);
      return absl::OkStatus();
    };
    Request request = row.request;
    request.deadline = e.now + row.deadline;
    const auto sink = e.Submit(std::move(request));
    if (row.steps == 0) e.now += row.deadline;
    e.Run();
    EXPECT_EQ(sink->status().code(), StatusCode::kDeadlineExceeded);
    EXPECT_EQ(sink->ids.size(), row.tokens);
    EXPECT_EQ(e.runner->num_steps(), row.steps);
    EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair("deadline", 1)));
    EXPECT_EQ(e.observer.wasted_tokens["deadline"], static_cast<int64_t>(row.tokens));
    EXPECT_LT(e.observer.finished[0].cancel_latency, absl::Seconds(1));
    ExpectIdle(e);
  }
}

TEST(EngineTest, QueueTimeoutHoldsOnlyInTheQueue) {
  SteppedEngine e({.max_sequences = 1});
  e.runner->on_forward = [&e](auto) {
    e.now += absl::Seconds(1);
    return absl::OkStatus();
  };
  const auto submit = [&e](absl::Duration timeout) {
    Request request = Generate(Prompt(4), 5);
    request.queue_timeout = timeout;
    return e.Submit(std::move(request));
  };
  const auto first = submit(absl::Seconds(1));   // starts at once, runs for 5 seconds
  const auto second = submit(absl::Seconds(3));  // is still queued after 3
  const auto third = submit(absl::Seconds(6));   // starts after 5
  e.Step();
  e.Step();
  e.Step();
  EXPECT_FALSE(second->end.has_value());
  e.Step();
  EXPECT_EQ(second->status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(DetailsOf(second->status()).reason, "QUEUE_TIMEOUT");
  EXPECT_TRUE(DetailsOf(second->status()).retry_after.has_value());
  e.Run();
  EXPECT_EQ(first->status(), absl::OkStatus());
  EXPECT_EQ(third->status(), absl::OkStatus());
  EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair("deadline", 1), Pair("length", 2)));
  ExpectIdle(e);
}

// --- Failures ------------------------------------------------------------------------------

TEST(EngineTest, AFailedStepFailsItsSequencesOnly) {
  SteppedEngine e({.max_sequences = 2});
  const auto a = e.Submit(Generate(Prompt(3), 10));
  const auto b = e.Submit(Generate(Prompt(4), 10));
  const auto queued = e.Submit(Generate(Prompt(5), 10));
  e.Step();
  e.runner->on_forward = [](auto) { return absl::InvalidArgumentError("out of memory"); };
  e.Step();
  e.runner->on_forward = nullptr;
  for (const auto& sink : {a, b}) {
    EXPECT_EQ(sink->status().code(), StatusCode::kInternal);
    EXPECT_THAT(std::string(sink->status().message()), HasSubstr("out of memory"));
    EXPECT_EQ(sink->ids.size(), 1u);
  }
  e.Run();
  EXPECT_EQ(queued->ids, ExpectedTokens(Prompt(5), 10));
  EXPECT_THAT(e.observer.wasted_tokens, ElementsAre(Pair("error", 2)));
  EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair("error", 2), Pair("length", 1)));
  ExpectIdle(e);
}

// What is said of it is the runner's; who hears it decides what to do.
TEST(EngineTest, ALostDeviceIsReported) {
  struct Row {
    std::string name;
    absl::Status status;
    bool is_reported;
  };
  const Row rows[] = {
      {"a failed step", absl::InternalError("out of memory"), false},
      {"a lost device", absl::UnavailableError("the device is lost"), true},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    std::vector<absl::Status> reported;
    EngineOptions options;
    options.on_device_lost = [&](const absl::Status& status) { reported.push_back(status); };
    SteppedEngine e({}, options);
    const auto sink = e.Submit(Generate(Prompt(3), 10));
    e.Step();
    EXPECT_THAT(reported, testing::IsEmpty());
    e.runner->on_forward = [&row](auto) { return row.status; };
    e.Step();
    EXPECT_EQ(sink->status().code(), StatusCode::kInternal);
    EXPECT_EQ(reported.size(), row.is_reported ? 1u : 0u);
    for (const absl::Status& status : reported) EXPECT_EQ(status, row.status);
    ExpectIdle(e);
  }
}

TEST(EngineTest, NonfiniteLogitsFailTheirRequestAlone) {
  SteppedEngine e;
  const auto good = e.Submit(Generate(Prompt(3), 6));
  const auto bad = e.Submit(Generate({7, 7, 7}, 6));
  // One input of three fails; the two others are in the same step, and no longer wanted.
  const auto embed = e.Submit(Embed({Prompt(4), {7, 7}, Prompt(5)}));
  e.runner->is_not_finite = [](const SequenceChunk& chunk) { return chunk.tokens[0] == 7; };
  e.Run();
  EXPECT_EQ(good->ids, ExpectedTokens(Prompt(3), 6));
  EXPECT_EQ(bad->status().code(), StatusCode::kInternal);
  EXPECT_EQ(embed->status().code(), StatusCode::kInternal);
  EXPECT_THAT(std::string(bad->status().message()), HasSubstr("not finite"));
  EXPECT_EQ(e.observer.nonfinite_logits, 2);
  EXPECT_EQ(embed->calls_after_end, 0);
  ExpectIdle(e);
}

// --- What the observer hears ---------------------------------------------------------------

TEST(EngineTest, MeasuresTimes) {
  SteppedEngine e({.max_sequences = 1, .max_step_tokens = 4});
  const absl::Time begin = e.now;
  const absl::Duration steps[] = {absl::Seconds(1), absl::Seconds(2), absl::Seconds(4),
                                  absl::Seconds(8)};
  size_t step = 0;
  e.runner->on_forward = [&](auto) {
    e.now += steps[step++];
    return absl::OkStatus();
  };
  const auto sink = e.Submit(Generate(Prompt(5), 3));
  e.now += absl::Milliseconds(500);
  e.Run();
  EXPECT_EQ(e.now, begin + absl::Milliseconds(15500));
  const RequestTimings& timings = sink->end->timings;
  EXPECT_EQ(timings.queue, absl::Milliseconds(500));
  EXPECT_EQ(timings.prefill, absl::Seconds(3));
  EXPECT_EQ(timings.decode, absl::Seconds(12));
  EXPECT_EQ(timings.time_to_first_token, absl::Milliseconds(3500));
  EXPECT_THAT(e.observer.times_to_first_token, ElementsAre(absl::Milliseconds(3500)));
  EXPECT_THAT(e.observer.inter_token_latencies, ElementsAre(absl::Seconds(4), absl::Seconds(8)));
  ASSERT_EQ(e.observer.finished.size(), 1u);
  const FinishedRequest& finished = e.observer.finished[0];
  EXPECT_EQ(finished.queue, timings.queue);
  EXPECT_EQ(finished.prefill, timings.prefill);
  EXPECT_EQ(finished.decode, timings.decode);
  EXPECT_EQ(finished.prompt_tokens, 5);
  EXPECT_EQ(finished.generated_tokens, 3);
  EXPECT_EQ(finished.cancel_latency, absl::ZeroDuration());
  ASSERT_EQ(e.observer.steps.size(), 4u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(e.observer.steps[i].duration, steps[i]) << i;
}

TEST(EngineTest, LoadFollowsTheQueues) {
  SteppedEngine e({.max_sequences = 2, .max_step_tokens = 16});
  const auto expect_load = [&e](int running, int waiting, int embed_running, int embed_waiting,
                                int64_t waiting_tokens, int32_t blocks_used) {
    const EngineLoad load = e.engine->load();
    EXPECT_EQ(load.of(Task::kGenerate).running, running);
    EXPECT_EQ(load.of(Task::kGenerate).waiting, waiting);
    EXPECT_EQ(load.of(Task::kEmbed).running, embed_running);
    EXPECT_EQ(load.of(Task::kEmbed).waiting, embed_waiting);
    EXPECT_EQ(load.waiting_tokens, waiting_tokens);
    EXPECT_EQ(load.kv_blocks_used, blocks_used);
    EXPECT_EQ(e.observer.last_load.waiting_tokens, waiting_tokens);
    EXPECT_EQ(e.observer.last_load.kv_blocks_used, blocks_used);
  };
  e.Submit(Generate(Prompt(5), 2));
  e.Submit(Embed({Prompt(3), Prompt(4)}));
  e.Submit(Generate(Prompt(6), 1));
  expect_load(0, 2, 0, 1, 18, 0);
  e.Step();  // the generate and one input
  expect_load(1, 1, 1, 0, 6, 2);
  e.Step();  // the generate's second token, the other input
  expect_load(0, 1, 0, 0, 6, 0);
  e.Step();
  expect_load(0, 0, 0, 0, 0, 0);
}

TEST(EngineTest, EverythingIsCountedBeforeTheEndIsDelivered) {
  SteppedEngine e;
  const auto sink = e.Submit(Generate(Prompt(5), 2));
  sink->on_end = [&e] {
    EXPECT_EQ(e.observer.generated_tokens, 2);
    EXPECT_EQ(e.observer.steps.size(), 2u);
    EXPECT_EQ(e.observer.finished.size(), 1u);
    EXPECT_EQ(e.observer.last_load.of(Task::kGenerate).running, 0);
    EXPECT_EQ(e.observer.last_load.kv_blocks_used, 0);
  };
  e.Run();
  EXPECT_TRUE(sink->end.has_value());
}

// --- Start and stop ------------------------------------------------------------------------

TEST(EngineTest, WarmUpRunsTheLargestSteps) {
  struct Row {
    const char* name;
    FakeModelRunner::Options model;
    int32_t context;
    int32_t prefill;
    int32_t decodes;
  };
  const Row rows[] = {
      {"one prompt fills the step", {.kv_num_blocks = 64, .max_step_tokens = 64}, 100, 64, 8},
      {"several do", {.kv_num_blocks = 64, .max_step_tokens = 64}, 30, 64, 8},
      {"the cache is too small", {.kv_num_blocks = 2, .max_step_tokens = 64}, 100, 8, 1},
      {"one slot", {.kv_num_blocks = 64, .max_sequences = 1, .max_step_tokens = 64}, 100, 64, 1},
      {"nothing is prepared",
       {.kv_num_blocks = 64, .max_step_tokens = 64, .first_steps_are_slow = false},
       100,
       16,
       8},
      {"nothing is prepared for many",
       {.kv_num_blocks = 64,
        .max_sequences = 32,
        .max_step_tokens = 64,
        .first_steps_are_slow = false},
       100,
       16,
       16},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e(row.model, {.max_context_length = row.context});
    int32_t prefill = 0;
    int32_t decodes = 0;
    e.runner->on_forward = [&](absl::Span<const SequenceChunk> chunks) {
      int32_t positions = 0;
      int32_t decoding = 0;
      for (const SequenceChunk& chunk : chunks) {
        positions += static_cast<int32_t>(chunk.tokens.size()) - chunk.start;
        if (chunk.start > 0) ++decoding;
      }
      prefill = std::max(prefill, positions);
      decodes = std::max(decodes, decoding);
      return absl::OkStatus();
    };
    EXPECT_EQ(e.engine->WarmUp(), absl::OkStatus());
    EXPECT_EQ(prefill, row.prefill);
    EXPECT_EQ(decodes, row.decodes);
    e.runner->on_forward = nullptr;
    const auto sink = e.Submit(Generate(Prompt(5), 3));
    e.Run();
    EXPECT_EQ(sink->ids, ExpectedTokens(Prompt(5), 3));
    EXPECT_EQ(e.observer.generated_tokens, 3) << "the observer hears nothing of the warm-up";
    ExpectIdle(e);
  }
}

TEST(EngineTest, WarmUpFailsAsTheRunnerDoes) {
  SteppedEngine e;
  e.runner->on_forward = [](auto) { return absl::InternalError("no device"); };
  EXPECT_EQ(e.engine->WarmUp(), absl::InternalError("no device"));
  e.runner->on_forward = nullptr;
  e.runner->is_not_finite = [](const SequenceChunk& chunk) { return chunk.start > 0; };
  EXPECT_EQ(e.engine->WarmUp().code(), StatusCode::kInternal);
  ExpectIdle(e);
}

TEST(EngineTest, StopEndsEveryone) {
  SteppedEngine e({.max_sequences = 1});
  const auto running = e.Submit(Generate(Prompt(3), 50));
  const auto waiting = e.Submit(Embed({Prompt(3), Prompt(4)}));
  e.Step();
  const auto submitted = e.Submit(Generate(Prompt(3), 50));
  EXPECT_FALSE(e.engine->WaitUntilIdle(absl::InfinitePast()));
  e.engine->Stop();
  for (const auto& sink : {running, waiting, submitted}) {
    EXPECT_EQ(sink->status().code(), StatusCode::kUnavailable);
  }
  EXPECT_TRUE(e.engine->WaitUntilIdle(absl::InfinitePast()));
  EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair("error", 3)));
  EXPECT_THAT(e.observer.wasted_tokens, ElementsAre(Pair("error", 1)));
  ExpectIdle(e);
  e.engine->Stop();
  EXPECT_EQ(e.observer.finished.size(), 3u);
}

TEST(EngineTest, DrainsWhatWasAdmitted) {
  SteppedEngine e;
  const auto sink = e.Submit(Generate(Prompt(3), 5));
  e.engine->StopAdmission();
  EXPECT_EQ(e.Submit(Generate(Prompt(3), 5)), nullptr);
  e.Run();
  EXPECT_EQ(sink->ids, ExpectedTokens(Prompt(3), 5));
}

TEST(EngineTest, AnIdleStepDoesNothing) {
  SteppedEngine e;
  EXPECT_FALSE(e.Step());
  EXPECT_EQ(e.runner->num_steps(), 0);
  EXPECT_THAT(e.observer.steps, IsEmpty());
}

}  // namespace
}  // namespace ddl
