// What a turn of the step thread does in which order: steps are begun and finished, and clients are
// served between the two.

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

// Steps whose gates are sampled have a part of the host's.
const EngineOptions kNoGates = {.gate_sample_interval = absl::InfiniteDuration()};

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

  void WriteDelivered() { Write("delivered"); }

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

TEST(EngineTurnsTest, DeliversWhileTheNextStepIsInFlight) {
  SteppedEngine e;
  Diary diary(&e);
  const auto sink = e.Submit(Generate(Prompt(5), 3));
  diary.Watch(sink);
  EXPECT_EQ(diary.Turn(), "begin 1, finish 1");
  EXPECT_TRUE(sink->start.has_value()) << "delivered in the step that first computes any of it";
  EXPECT_EQ(diary.Turn(), "begin 2, token 1, finish 2");
  EXPECT_EQ(diary.Turn(), "begin 3, token 2, finish 3");
  EXPECT_EQ(diary.Turn(), "token 3, end") << "nobody waits for a step that does not come";
  EXPECT_EQ(diary.Turn(), "idle");
  ExpectIdle(e);
}

TEST(EngineTurnsTest, TheNextStepIsBegunBeforeThisOneIsFinished) {
  SteppedEngine e({.max_in_flight_steps = 2}, kNoGates);
  Diary diary(&e);
  const auto sink = e.Submit(Generate(Prompt(5), 3));
  diary.Watch(sink);
  EXPECT_EQ(diary.Turn(), "begin 1");
  EXPECT_EQ(diary.Turn(), "begin 2, finish 1");
  EXPECT_EQ(diary.Turn(), "begin 3, token 1, finish 2");
  EXPECT_EQ(diary.Turn(), "token 2, finish 3") << "that it ends there is known before";
  EXPECT_EQ(diary.Turn(), "token 3, end");
  EXPECT_EQ(diary.Turn(), "idle");
  EXPECT_EQ(sink->ids, ExpectedTokens(Prompt(5), 3));
  ExpectIdle(e);
}

// For whoever sends what was delivered: once for all clients, before anything is computed.
TEST(EngineTurnsTest, CallsOnDeliveredOnceATurn) {
  Diary* open_diary = nullptr;
  EngineOptions options = kNoGates;
  options.on_delivered = [&open_diary] { open_diary->WriteDelivered(); };
  SteppedEngine e({}, options);
  Diary diary(&e);
  open_diary = &diary;
  const std::vector<std::shared_ptr<RecordingSink>> sinks = {e.Submit(Generate(Prompt(5), 2)),
                                                             e.Submit(Generate(Prompt(6), 2))};
  for (const auto& sink : sinks) diary.Watch(sink);
  EXPECT_EQ(diary.Turn(), "begin 1, delivered, finish 1");
  EXPECT_EQ(diary.Turn(), "begin 2, token 1, token 1, delivered, finish 2");
  EXPECT_EQ(diary.Turn(), "token 2, token 2, end, end, delivered");
  EXPECT_EQ(diary.Turn(), "idle");
}

// How many of the steps were begun while the one before was in flight.
TEST(EngineTurnsTest, FinishesAStepThatTheNextDependsOnFirst) {
  struct Row {
    const char* name;
    std::function<void(GenerateParams&)> set;
    int ahead;  // of 6 steps
    int steps = 6;
    absl::Duration gate_sample_interval = absl::InfiniteDuration();
  };
  const Row rows[] = {
      {"nothing", [](auto&) {}, 5},
      {"sampled at random", [](auto& p) { p.sampling = {.temperature = 1, .seed = 3}; }, 5},
      {"its own logprobs", [](auto& p) { p.logprobs = 0; }, 5},
      {"a bias",
       [](auto& p) {
         p.sampling.logit_bias = {{3, 1.0f}};
       },
       5},
      {"tokens banned by their number",
       [](auto& p) {
         p.stopping.stop_token_ids = {49};
         p.stopping.min_tokens = 3;
       },
       5},
      {"several completions", [](auto& p) { p.n = 2; }, 6, 7},  // the second begins a step later
      {"its only token", [](auto& p) { p.stopping.max_tokens = 1; }, 0, 1},
      {"a list of likely tokens", [](auto& p) { p.logprobs = 1; }, 0},
      {"a repetition penalty", [](auto& p) { p.sampling.repetition_penalty = 1.1f; }, 0},
      {"a frequency penalty", [](auto& p) { p.sampling.frequency_penalty = 0.1f; }, 0},
      {"a presence penalty", [](auto& p) { p.sampling.presence_penalty = 0.1f; }, 0},
      {"statistics", [](auto& p) { p.ddl_stats = true; }, 0},
      {"the prompt's logprobs", [](auto& p) { p.prompt_logprobs = 0; }, 4},
      {"gates that are sampled all the time", [](auto&) {}, 0, 6, absl::ZeroDuration()},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    SteppedEngine e({.max_in_flight_steps = 2}, {.gate_sample_interval = row.gate_sample_interval});
    int ahead = 0;
    e.runner->on_begin = [&](auto) { ahead += e.runner->num_begun() - 1 > e.runner->num_steps(); };
    Request request = Generate(Prompt(5), 6);
    row.set(ParamsOf(request));
    const auto sink = e.Submit(std::move(request));
    while (e.engine->Step()) {
    }
    EXPECT_EQ(sink->status(), absl::OkStatus());
    EXPECT_EQ(e.runner->num_steps(), row.steps);
    EXPECT_EQ(ahead, row.ahead);
    ExpectIdle(e);
  }
}

TEST(EngineTurnsTest, AVectorForTheHostHoldsUpTheNextStep) {
  SteppedEngine e({.max_in_flight_steps = 2}, kNoGates);
  Diary diary(&e);
  e.Submit(Generate(Prompt(5), 9));
  EXPECT_EQ(diary.Turn(), "begin 1");
  const auto embed = e.Submit(Embed({Prompt(3)}));
  EXPECT_EQ(diary.Turn(), "begin 2, finish 1");
  EXPECT_EQ(diary.Turn(), "finish 2, begin 3");
  EXPECT_TRUE(embed->end.has_value()) << "delivered while step 3 is in flight";
  EXPECT_EQ(diary.Turn(), "begin 4, finish 3");
  e.Run();
  ExpectIdle(e);
}

// Where only the token says that it was the last, one more has been begun.
TEST(EngineTurnsTest, WhatWasBegunPastTheEndIsDropped) {
  SteppedEngine e({.kv_block_size = 2, .max_in_flight_steps = 2}, kNoGates);
  const std::vector<TokenId> sampled = ExpectedTokens(Prompt(5), 9);
  Request request = Generate(Prompt(5), 9);
  ParamsOf(request).stopping.stop_token_ids = {sampled[2]};
  const auto sink = e.Submit(std::move(request));
  while (e.engine->Step()) {
  }
  EXPECT_EQ(sink->ids, std::vector<TokenId>(sampled.begin(), sampled.begin() + 3));
  EXPECT_EQ(sink->end->completions.front().finish_reason, FinishReason::kStop);
  EXPECT_EQ(e.runner->num_steps(), 4);
  EXPECT_EQ(e.observer.generated_tokens, 3);
  EXPECT_THAT(e.observer.wasted_tokens, testing::IsEmpty());
  // Of the 8 positions computed 7 are those of tokens that count: 3 whole blocks.
  EXPECT_EQ(e.engine->load().kv_blocks_cached, 3);
  std::vector<TokenId> longer = Prompt(5);
  longer.insert(longer.end(), sampled.begin(), sampled.end());
  const auto next = e.Submit(Generate(longer, 4));
  e.Run();
  EXPECT_EQ(next->end->usage.cached_tokens, 6);
  EXPECT_EQ(next->ids, ExpectedTokens(longer, 4));
  ExpectIdle(e);
}

// Everybody's blocks, slots and tokens go round, and nobody's answer changes.
TEST(EngineTurnsTest, AnswersDoNotDependOnTheStepsInFlight) {
  const FakeModelRunner::Options models[] = {
      {.kv_num_blocks = 200, .max_sequences = 9, .max_step_tokens = 64},
      {.kv_num_blocks = 11, .max_sequences = 9, .max_step_tokens = 64},
      {.kv_block_size = 1, .kv_num_blocks = 40, .max_sequences = 9, .max_step_tokens = 9},
      {.kv_num_blocks = 30, .max_sequences = 1, .max_step_tokens = 7},
  };
  int preemptions = 0;
  for (FakeModelRunner::Options model : models) {
    for (const bool cache : {false, true}) {
      std::vector<std::vector<std::shared_ptr<RecordingSink>>> sinks;
      for (const int32_t steps_in_flight : {1, 2}) {
        model.max_in_flight_steps = steps_in_flight;
        SteppedEngine e(model,
                        {.prefix_cache = cache, .gate_sample_interval = absl::InfiniteDuration()});
        sinks.emplace_back();
        for (int32_t i = 0; i < 14; ++i) {
          Request request = i % 5 == 4 ? Embed({Prompt(i + 1, i), Prompt(9, i + 50)})
                                       : Generate(Prompt(2 * (i % 4) + 1, i % 6), 3 + i);
          if (i % 5 != 4) {
            ParamsOf(request).sampling = {.temperature = i % 2 == 0 ? 0.0f : 1.0f,
                                          .presence_penalty = i % 7 == 6 ? 0.5f : 0.0f,
                                          .seed = 7u + i};
            ParamsOf(request).n = 1 + i % 3;
            ParamsOf(request).stopping.stop_token_ids = {3, 17, 31};
            ParamsOf(request).stopping.min_tokens = i % 3;
          }
          sinks.back().push_back(e.Submit(std::move(request)));
          e.engine->Step();
        }
        while (e.engine->Step()) {
        }
        if (steps_in_flight == 2) preemptions += e.observer.preemptions;
        ExpectIdle(e);
      }
      for (size_t i = 0; i < sinks[0].size(); ++i) {
        SCOPED_TRACE(i);
        EXPECT_EQ(sinks[0][i]->status(), absl::OkStatus());
        EXPECT_EQ(sinks[1][i]->status(), absl::OkStatus());
        EXPECT_EQ(sinks[1][i]->completions, sinks[0][i]->completions);
        EXPECT_EQ(sinks[1][i]->embeddings, sinks[0][i]->embeddings);
      }
    }
  }
  EXPECT_GT(preemptions, 0);
}

TEST(EngineTurnsTest, DeliversStepsInFlightToAFullSink) {
  for (const int32_t in_flight : {1, 2}) {
    SCOPED_TRACE(in_flight);
    SteppedEngine e({.max_in_flight_steps = in_flight}, kNoGates);
    Diary diary(&e);
    const auto sink = e.Submit(Generate(Prompt(5), 6));
    diary.Watch(sink);
    for (int i = 0; i < in_flight; ++i) diary.Turn();
    sink->state = SinkState::kFull;
    EXPECT_EQ(diary.Turn(),
              in_flight == 1 ? "begin 2, token 1, finish 2" : "begin 3, token 1, finish 2");
    EXPECT_EQ(e.engine->load().paused_slow_reader, 1);
    EXPECT_EQ(diary.Turn(), in_flight == 1 ? "token 2" : "token 2, finish 3");
    EXPECT_EQ(diary.Turn(), in_flight == 1 ? "idle" : "token 3");
    EXPECT_EQ(diary.Turn(), "idle");
    EXPECT_EQ(e.observer.stalls, 1) << "it had been paused";
    sink->state = SinkState::kReady;
    e.engine->Resume(e.handle);
    e.Run();
    EXPECT_EQ(sink->ids, ExpectedTokens(Prompt(5), 6));
    ExpectIdle(e);
  }
}

// Slots and blocks that a request is about to leave are not there yet. What was taken for nothing
// is counted nevertheless.
TEST(EngineTurnsTest, NobodyCanStartBeforeTheLastStepOfAnother) {
  SteppedEngine e({.kv_num_blocks = 6, .max_in_flight_steps = 2}, kNoGates);
  Diary diary(&e);
  const auto paused = e.Submit(Generate(Prompt(5), 9));
  const RequestHandle paused_handle = e.handle;
  paused->state = SinkState::kFull;
  for (int i = 0; i < 5; ++i) diary.Turn();
  EXPECT_EQ(diary.Turn(), "idle");
  EXPECT_EQ(e.engine->load().kv_blocks_used, 2);
  const auto last = e.Submit(Generate(Prompt(13, 1), 1));
  EXPECT_EQ(diary.Turn(), "begin 4");
  const auto waits = e.Submit(Generate(Prompt(13, 2), 2));
  EXPECT_EQ(diary.Turn(), "finish 4");
  EXPECT_EQ(e.observer.preemptions, 1);
  EXPECT_EQ(diary.Turn(), "begin 5");
  EXPECT_TRUE(last->end.has_value());
  paused->state = SinkState::kReady;
  e.engine->Resume(paused_handle);
  e.Run();
  EXPECT_EQ(paused->ids, ExpectedTokens(Prompt(5), 9));
  EXPECT_EQ(paused->end->timings.preemptions, 1);
  EXPECT_EQ(waits->ids, ExpectedTokens(Prompt(13, 2), 2));
  ExpectIdle(e);
}

TEST(EngineTurnsTest, AStepLastsFromTheEndOfTheOneBefore) {
  for (const int32_t in_flight : {1, 2}) {
    SCOPED_TRACE(in_flight);
    SteppedEngine e({.max_in_flight_steps = in_flight}, kNoGates);
    e.runner->on_forward = [&e](auto) {
      e.now += absl::Milliseconds(10);
      return absl::OkStatus();
    };
    e.Submit(Generate(Prompt(5), 6));
    while (e.engine->Step()) {
    }
    ASSERT_EQ(e.observer.steps.size(), 6u);
    for (const StepStats& step : e.observer.steps) {
      EXPECT_EQ(step.duration, absl::Milliseconds(10));
      EXPECT_EQ(step.model_duration, absl::Milliseconds(10));
    }
  }
}

// A step that fails takes the one with it that was begun after it, and no other.
TEST(EngineTurnsTest, AFailedStepFailsTheOneBegunAfterIt) {
  for (const int32_t in_flight : {1, 2}) {
    for (const bool lost : {false, true}) {
      SCOPED_TRACE(testing::Message() << in_flight << (lost ? ", lost" : ""));
      std::vector<absl::Status> reported;
      EngineOptions options = kNoGates;
      options.on_device_lost = [&](const absl::Status& status) { reported.push_back(status); };
      SteppedEngine e({.max_sequences = 2, .max_in_flight_steps = in_flight}, options);
      const auto first = e.Submit(Generate(Prompt(5), 9));
      e.engine->Step();
      const auto second = e.Submit(Generate(Prompt(6), 9));
      const auto third = e.Submit(Generate(Prompt(7), 9));
      const int failing = e.runner->num_steps() + 1;
      e.runner->on_forward = [&](auto) {
        if (e.runner->num_steps() != failing) return absl::OkStatus();
        return lost ? absl::UnavailableError("lost") : absl::InternalError("out of memory");
      };
      e.engine->Step();
      e.engine->Step();
      for (const auto& sink : {first, second}) {
        EXPECT_EQ(sink->status().code(), absl::StatusCode::kInternal);
        EXPECT_THAT(std::string(sink->status().message()),
                    testing::HasSubstr(lost ? "lost" : "out of memory"));
      }
      EXPECT_EQ(first->ids.size(), in_flight == 1 ? 1u : 0u);
      EXPECT_EQ(reported.empty(), !lost);
      e.Run();
      EXPECT_EQ(third->ids, ExpectedTokens(Prompt(7), 9));
      ExpectIdle(e);
    }
  }
}

TEST(EngineTurnsTest, LogitsThatAreNotFiniteFailTheirRequestAlone) {
  SteppedEngine e({.max_in_flight_steps = 2}, kNoGates);
  const auto good = e.Submit(Generate(Prompt(3), 6));
  const auto bad = e.Submit(Generate({7, 7, 7}, 6));
  e.runner->is_not_finite = [](const SequenceChunk& chunk) {
    return chunk.tokens[0] == 7 && chunk.tokens.size() == 5;
  };
  while (e.engine->Step()) {
  }
  EXPECT_EQ(good->ids, ExpectedTokens(Prompt(3), 6));
  EXPECT_EQ(bad->status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(bad->ids.size(), 2u);
  EXPECT_EQ(e.observer.nonfinite_logits, 1);
  ExpectIdle(e);
}

// What ends a request while a step of it is in flight, and how many tokens it was given.
TEST(EngineTurnsTest, EndsRequestsWhileAStepIsInFlight) {
  struct Row {
    const char* name;
    int32_t tokens;  // asked for
    // After the first step was finished.
    std::function<void(SteppedEngine&, RecordingSink&)> then;
    absl::StatusCode code;
    size_t delivered;      // one step in flight
    size_t delivered_two;  // two
  };
  const Row rows[] = {
      {"its last token, as its sink is full", 2,
       [](SteppedEngine&, RecordingSink& sink) { sink.state = SinkState::kFull; },
       absl::StatusCode::kOk, 2, 2},
      {"a cancel from its sink", 9,
       [](SteppedEngine& e, RecordingSink& sink) {
         sink.on_delta = [&e] {
           e.engine->Cancel(e.handle);
           return SinkState::kReady;
         };
       },
       absl::StatusCode::kCancelled, 2, 2},
      {"its deadline, in the step", 9,
       [](SteppedEngine& e, RecordingSink&) { e.now += absl::Seconds(9); },
       absl::StatusCode::kDeadlineExceeded, 1, 1},
      {"a stop", 9, [](SteppedEngine& e, RecordingSink&) { e.engine->Stop(); },
       absl::StatusCode::kUnavailable, 1, 2},
  };
  for (const Row& row : rows) {
    for (const int32_t in_flight : {1, 2}) {
      SCOPED_TRACE(testing::Message() << row.name << ", " << in_flight);
      SteppedEngine e({.max_in_flight_steps = in_flight}, kNoGates);
      Request request = Generate(Prompt(5), row.tokens);
      request.deadline = e.now + absl::Seconds(9);
      const auto sink = e.Submit(std::move(request));
      for (int i = 0; i < in_flight; ++i) e.engine->Step();
      row.then(e, *sink);
      while (e.engine->Step()) {
      }
      EXPECT_EQ(sink->status().code(), row.code);
      EXPECT_EQ(sink->ids.size(), in_flight == 1 ? row.delivered : row.delivered_two);
      EXPECT_EQ(sink->end->usage.completion_tokens, sink->ids.size());
      EXPECT_EQ(sink->calls_after_end, 0);
      ExpectIdle(e);
    }
  }
}

}  // namespace
}  // namespace ddl
