// What the engine computes beside plain completions and embeddings: several completions of a
// prompt, scores, the prompt's own probabilities, readouts and gates.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "server/engine/engine.h"
#include "tests/server/engine/engine_fixture.h"

namespace ddl {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;

// Tokens of `tokens` but the first, as the fake model scores them.
void ExpectScores(const std::vector<SampledToken>& scored, const std::vector<TokenId>& tokens,
                  size_t top = 0) {
  ASSERT_EQ(scored.size(), tokens.size() - 1);
  for (size_t i = 0; i < scored.size(); ++i) {
    const SampledToken expected = FakeModelRunner::Score(absl::MakeSpan(tokens).first(i + 1),
                                                         tokens[i + 1], static_cast<int32_t>(top));
    EXPECT_EQ(scored[i].id, expected.id) << i;
    EXPECT_EQ(scored[i].logprob, expected.logprob) << i;
    EXPECT_EQ(scored[i].top.size(), top) << i;
  }
}

// Small steps, small caches, with and without the prefix cache.
struct Setting {
  const char* name;
  FakeModelRunner::Options model;
  EngineOptions options;
};
const Setting kSettings[] = {
    {"one step", {}, {}},
    {"no prefix cache", {}, {.prefix_cache = false}},
    {"chunks of 3", {.max_sequences = 3, .max_step_tokens = 3}, {}},
    {"chunks of 5, no prefix cache",
     {.max_sequences = 4, .max_step_tokens = 5},
     {.prefix_cache = false}},
    {"one slot", {.max_sequences = 1}, {}},
    {"one slot, no prefix cache", {.max_sequences = 1}, {.prefix_cache = false}},
    {"a small cache", {.kv_num_blocks = 8}, {}},
    {"a small cache, no prefix cache", {.kv_num_blocks = 8}, {.prefix_cache = false}},
};

// --- Several completions -------------------------------------------------------------------

TEST(EngineOutputsTest, CompletionsSampleWithConsecutiveSeeds) {
  for (const Setting& setting : kSettings) {
    for (const int32_t length : {1, 3, 4, 5, 13}) {
      SCOPED_TRACE(testing::Message() << setting.name << ", a prompt of " << length);
      SteppedEngine e(setting.model, setting.options);
      Request request = Generate(Prompt(length), 9);
      ParamsOf(request).n = 4;
      ParamsOf(request).sampling = {.temperature = 1, .seed = 40};
      const auto sink = e.Submit(std::move(request));
      e.Run();
      ASSERT_EQ(sink->status(), absl::OkStatus());
      for (int32_t i = 0; i < 4; ++i) {
        EXPECT_EQ(sink->completions[i],
                  ExpectedTokens(Prompt(length), 9, {.temperature = 1, .seed = 40u + i}));
        EXPECT_EQ(sink->end->completions[i].index, i);
        EXPECT_EQ(sink->end->completions[i].finish_reason, FinishReason::kLength);
      }
      EXPECT_EQ(sink->end->usage.prompt_tokens, length);
      EXPECT_EQ(sink->end->usage.completion_tokens, 36);
      EXPECT_EQ(e.observer.generated_tokens, 36);
      EXPECT_EQ(e.observer.prompt_tokens[Task::kGenerate], length) << "the prompt counts once";
      EXPECT_THAT(e.observer.times_to_first_token, SizeIs(4));
      EXPECT_THAT(e.observer.inter_token_latencies, SizeIs(32));
      EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair("length", 1)));
      ExpectIdle(e);
    }
  }
}

TEST(EngineOutputsTest, CompletionsShareTheBlocksOfTheirPrompt) {
  for (const bool cache : {false, true}) {
    SteppedEngine e({}, {.prefix_cache = cache});
    Request request = Generate(Prompt(11), 2);
    ParamsOf(request).n = 3;
    const auto sink = e.Submit(std::move(request));
    ASSERT_TRUE(e.Step());
    EXPECT_EQ(e.observer.steps.back().prefill_tokens, 11);
    EXPECT_EQ(e.engine->load().kv_blocks_used, 3);
    ASSERT_TRUE(e.Step());
    EXPECT_EQ(e.observer.steps.back().prefill_tokens, 6) << "3 each that are in no full block";
    EXPECT_EQ(e.engine->load().kv_blocks_used, 2 + 3 * 1 - 1) << "the first has just ended";
    e.Run();
    EXPECT_EQ(sink->status(), absl::OkStatus());
    EXPECT_EQ(e.observer.hit_tokens, 0) << "they share, whether or not there is a cache";
    ExpectIdle(e);
  }
}

TEST(EngineOutputsTest, ARequestEndsWithItsLastCompletion) {
  const auto samples = [](int32_t i) {
    return ExpectedTokens(Prompt(6), 12, {.temperature = 1, .seed = 7u + i});
  };
  SteppedEngine e;
  Request request = Generate(Prompt(6), 12);
  ParamsOf(request).n = 2;
  ParamsOf(request).sampling = {.temperature = 1, .seed = 7};
  ParamsOf(request).stopping.stop_token_ids = {samples(0)[3]};
  const auto sink = e.Submit(std::move(request));
  e.Run();
  ASSERT_THAT(sink->end->completions, SizeIs(2));
  EXPECT_EQ(sink->completions[0].size(), 4u);
  EXPECT_GT(sink->completions[1].size(), 4u) << "the second goes on when the first has stopped";
  EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair("stop", 1))) << "of the first";
  ExpectIdle(e);
}

TEST(EngineOutputsTest, CancellingEndsEveryCompletion) {
  SteppedEngine e;
  Request request = Generate(Prompt(6), 50);
  ParamsOf(request).n = 3;
  const auto sink = e.Submit(std::move(request));
  for (int i = 0; i < 4; ++i) e.Step();
  e.engine->Cancel(e.handle);
  e.Run();
  EXPECT_EQ(sink->status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(sink->end->usage.completion_tokens, 4 + 3 + 3);
  EXPECT_THAT(sink->end->completions, IsEmpty());
  EXPECT_THAT(e.observer.wasted_tokens, ElementsAre(Pair("cancel", 10)));
  ExpectIdle(e);
}

TEST(EngineOutputsTest, PenaltiesSeePromptAndCompletion) {
  SteppedEngine e;
  Request request = Generate(Prompt(5), 4);
  ParamsOf(request).sampling.presence_penalty = 0.5f;
  std::vector<std::pair<size_t, size_t>> seen;
  e.runner->on_forward = [&seen](absl::Span<const SequenceChunk> chunks) {
    const SampleRequest& sample = *chunks[0].sample;
    seen.emplace_back(sample.prompt.size(), sample.generated.size());
    EXPECT_EQ(sample.prompt[0], Prompt(5)[0]);
    return absl::OkStatus();
  };
  e.Submit(std::move(request));
  e.Run();
  EXPECT_THAT(seen, ElementsAre(Pair(5, 0), Pair(5, 1), Pair(5, 2), Pair(5, 3)));
}

// --- Scores --------------------------------------------------------------------------------

TEST(EngineOutputsTest, ScoresEveryTokenButTheFirst) {
  const std::vector<std::vector<TokenId>> inputs = {Prompt(1), Prompt(2), Prompt(9, 1),
                                                    Prompt(9, 1), Prompt(30, 2)};
  for (const Setting& setting : kSettings) {
    SCOPED_TRACE(setting.name);
    SteppedEngine e(setting.model, setting.options);
    const auto sink = e.Submit(Score(inputs));
    e.Run();
    ASSERT_EQ(sink->status(), absl::OkStatus());
    ASSERT_EQ(sink->scores.size(), inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      SCOPED_TRACE(i);
      ExpectScores(sink->scores[static_cast<int32_t>(i)], inputs[i]);
    }
    EXPECT_EQ(sink->end->usage.prompt_tokens, 51);
    EXPECT_EQ(e.observer.prompt_tokens[Task::kScore], 51);
    EXPECT_EQ(e.observer.hit_tokens, 0) << "every position is needed";
    EXPECT_THAT(e.observer.finish_reasons, ElementsAre(Pair("stop", 1)));
    EXPECT_EQ(sink->calls_before_start, 0);
    ExpectIdle(e);
  }
}

TEST(EngineOutputsTest, AScoreEqualsWhatDecodingReports) {
  SteppedEngine e;
  const auto generated = e.Submit(Generate(Prompt(6), 10));
  e.Run();
  std::vector<TokenId> text = Prompt(6);
  text.insert(text.end(), generated->ids.begin(), generated->ids.end());
  const auto scored = e.Submit(Score({text}));
  e.Run();
  for (size_t i = 0; i < generated->tokens.size(); ++i) {
    EXPECT_EQ(scored->scores[0][5 + i].logprob, generated->tokens[i].logprob) << i;
  }
}

TEST(EngineOutputsTest, PromptLogprobsComeWithTheStart) {
  for (const Setting& setting : kSettings) {
    for (const int32_t length : {1, 2, 4, 5, 14}) {
      for (const int32_t n : {1, 3}) {
        SCOPED_TRACE(testing::Message() << setting.name << ", a prompt of " << length << ", " << n);
        SteppedEngine e(setting.model, setting.options);
        e.Submit(Generate(Prompt(length), 3));  // leaves the prompt in the cache
        e.Run();
        const auto other = e.Submit(Generate(Prompt(3, 1), 6));
        Request request = Generate(Prompt(length), 5);
        ParamsOf(request).n = n;
        ParamsOf(request).prompt_logprobs = 2;
        const auto sink = e.Submit(std::move(request));
        e.Run();
        ASSERT_EQ(sink->status(), absl::OkStatus());
        ExpectScores(sink->start->prompt, Prompt(length), 2);
        EXPECT_EQ(sink->start->cached_tokens, 0) << "every position is needed";
        EXPECT_EQ(sink->calls_before_start, 0);
        EXPECT_EQ(sink->calls_after_end, 0) << "or a second start";
        for (int32_t i = 0; i < n; ++i) {
          EXPECT_EQ(sink->completions[i], ExpectedTokens(Prompt(length), 5));
        }
        EXPECT_EQ(other->ids, ExpectedTokens(Prompt(3, 1), 6));
        ExpectIdle(e);
      }
    }
  }
}

TEST(EngineOutputsTest, StartsOnceAndBeforeAnythingElse) {
  SteppedEngine e({.max_step_tokens = 8});
  const auto generate = e.Submit(Generate(Prompt(20), 3));
  const auto embed = e.Submit(Embed({Prompt(20, 1), Prompt(3, 2)}));
  EXPECT_FALSE(generate->start.has_value());
  e.Step();
  EXPECT_TRUE(generate->start.has_value()) << "in the first step that computes any of it";
  EXPECT_FALSE(embed->start.has_value());
  e.Run();
  for (const auto& sink : {generate, embed}) {
    EXPECT_EQ(sink->calls_before_start + sink->calls_after_end, 0);
    EXPECT_THAT(sink->start->prompt, IsEmpty());
  }
}

// --- Readouts and gates --------------------------------------------------------------------

TEST(EngineOutputsTest, EmbedsTheReadoutAskedFor) {
  const HiddenReadout readouts[] = {
      {},
      {.kind = HiddenReadout::Kind::kCompressed, .layer = 0},
      {.kind = HiddenReadout::Kind::kChannel, .layer = 0, .channel = 1},
      {.kind = HiddenReadout::Kind::kStateFlat, .layer = std::nullopt},
  };
  for (const HiddenReadout& readout : readouts) {
    SCOPED_TRACE(static_cast<int>(readout.kind));
    for (const Pooling pooling : {Pooling::kLastToken, Pooling::kNone}) {
      SteppedEngine e({.max_step_tokens = 8});
      Request request = Embed({Prompt(11)}, pooling);
      std::get<EmbedParams>(request.params).readout = readout;
      const auto sink = e.Submit(std::move(request));
      e.Run();
      EXPECT_EQ(sink->embeddings[0].back(), FakeModelRunner::Hidden(Prompt(11), readout));
    }
  }
}

void ExpectStats(const std::vector<SublayerStats>& stats, const std::vector<TokenId>& tokens) {
  ASSERT_THAT(stats, SizeIs(2));
  for (int32_t sublayer = 0; sublayer < 2; ++sublayer) {
    ASSERT_EQ(stats[sublayer].beta.size(), tokens.size());
    ASSERT_EQ(stats[sublayer].update_ratio.size(), tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      const auto past = absl::MakeSpan(tokens).first(i + 1);
      EXPECT_EQ(stats[sublayer].beta[i], FakeModelRunner::Beta(past, sublayer)) << i;
      EXPECT_EQ(stats[sublayer].update_ratio[i], FakeModelRunner::UpdateRatio(past, sublayer)) << i;
    }
  }
}

TEST(EngineOutputsTest, StatsCoverEveryPositionOnceAndInOrder) {
  int preemptions = 0;
  for (const Setting& setting : kSettings) {
    SCOPED_TRACE(setting.name);
    SteppedEngine e(setting.model, setting.options);
    e.Submit(Generate(Prompt(9), 3));  // leaves both prompts in the cache
    e.Run();
    Request request = Generate(Prompt(9), 10);
    ParamsOf(request).n = 3;
    ParamsOf(request).ddl_stats = true;
    ParamsOf(request).sampling = {.temperature = 1, .seed = 3};
    Request embed = Embed({Prompt(9), Prompt(12)});
    std::get<EmbedParams>(embed.params).ddl_stats = true;
    const auto generated = e.Submit(std::move(request));
    const auto embedded = e.Submit(std::move(embed));
    e.Run();
    preemptions += e.observer.preemptions;
    ASSERT_EQ(generated->status(), absl::OkStatus());
    ASSERT_THAT(generated->end->ddl_stats, SizeIs(3));
    for (int32_t i = 0; i < 3; ++i) {
      std::vector<TokenId> tokens = Prompt(9);
      const std::vector<TokenId>& sampled = generated->completions[i];
      tokens.insert(tokens.end(), sampled.begin(), sampled.end() - 1);  // the last is not computed
      ExpectStats(generated->end->ddl_stats[i], tokens);
    }
    ASSERT_THAT(embedded->end->ddl_stats, SizeIs(2));
    ExpectStats(embedded->end->ddl_stats[0], Prompt(9));
    ExpectStats(embedded->end->ddl_stats[1], Prompt(12));
    EXPECT_EQ(generated->end->usage.cached_tokens, 0);
    ExpectIdle(e);
  }
  EXPECT_GT(preemptions, 0);
}

TEST(EngineOutputsTest, SamplesGatesOfAFewPositionsOnceInAWhile) {
  SteppedEngine e({}, {.gate_sample_interval = absl::Seconds(10)});
  int32_t asked = 0;
  e.runner->on_forward = [&](absl::Span<const SequenceChunk> chunks) {
    e.now += absl::Seconds(1);
    for (const SequenceChunk& chunk : chunks) {
      if (chunk.ddl_stats) asked += static_cast<int32_t>(chunk.tokens.size()) - chunk.start;
    }
    return absl::OkStatus();
  };
  const auto sink = e.Submit(Generate(Prompt(17), 30));
  e.Run();
  // Not of the prompt, which is too long, but of the steps after 1, 11 and 21 seconds.
  EXPECT_EQ(asked, 3);
  ASSERT_THAT(e.observer.gate_samples, SizeIs(6));
  std::vector<TokenId> tokens = Prompt(17);
  tokens.push_back(sink->ids[0]);
  EXPECT_EQ(e.observer.gate_samples[0],
            std::tuple(0, false, std::vector<float>{FakeModelRunner::Beta(tokens, 0)}));
  EXPECT_EQ(e.observer.gate_samples[1],
            std::tuple(0, true, std::vector<float>{FakeModelRunner::Beta(tokens, 1)}));
  EXPECT_THAT(sink->end->ddl_stats, IsEmpty()) << "the client has not asked";
}

TEST(EngineOutputsTest, SamplesNoGatesWithAnInfiniteInterval) {
  SteppedEngine e({}, {.gate_sample_interval = absl::InfiniteDuration()});
  e.Submit(Generate(Prompt(3), 5));
  e.Run();
  EXPECT_THAT(e.observer.gate_samples, IsEmpty());
}

}  // namespace
}  // namespace ddl
