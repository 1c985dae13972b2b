// Random traffic over tiny caches: whatever arrives, is cancelled, expires or fails, nobody is
// lost, nothing leaks, and every answer is the right one.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/engine/engine.h"
#include "server/engine/status_details.h"
#include "tests/server/engine/engine_fixture.h"

namespace ddl {
namespace {

constexpr int kTraces = 2000;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int Between(int low, int high) {  // both included
    return low + static_cast<int>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool OneIn(int n) { return Between(1, n) == 1; }

 private:
  std::mt19937_64 engine_;
};

struct Submitted {
  Request request;
  RequestHandle handle;
  std::shared_ptr<RecordingSink> sink;
  bool cancelled = false;
};

class Trace {
 public:
  Trace(uint64_t seed, std::map<std::string, int>* outcomes)
      : random_(seed), outcomes_(outcomes), model_(RandomModel()), e_(model_, RandomOptions()) {
    e_.runner->on_forward = [this](auto) {
      e_.now += absl::Milliseconds(random_.Between(0, 20));
      return random_.OneIn(200) ? absl::UnavailableError("the device is gone") : absl::OkStatus();
    };
    // Where a sequence's values overflow depends on the sequence alone.
    e_.runner->is_not_finite = [](const SequenceChunk& chunk) {
      return chunk.tokens[0] == 13 && chunk.tokens.size() % 5 == 0;
    };
  }

  void Run() {
    const int steps = random_.Between(1, 40);
    for (int i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
      while (random_.OneIn(2)) Submit();
      while (!submitted_.empty() && random_.OneIn(8)) {
        Submitted& victim = submitted_[random_.Between(0, static_cast<int>(submitted_.size()) - 1)];
        victim.cancelled = true;
        e_.engine->Cancel(victim.handle);
      }
      Step();
    }
    if (random_.OneIn(10)) {
      e_.engine->Stop();
    } else {
      // Every step computes something for the first by rank, who is never preempted.
      int64_t left = total_tokens_ + 2;
      while (Step()) ASSERT_GE(--left, 0) << "no progress";
    }
    CheckEnd();
  }

 private:
  FakeModelRunner::Options RandomModel() {
    FakeModelRunner::Options model;
    model.kv_block_size = random_.Between(1, 6);
    model.kv_num_blocks = random_.Between(2, random_.OneIn(3) ? 8 : 40);
    model.max_sequences = random_.Between(1, 8);
    model.max_step_tokens = random_.Between(model.max_sequences, 24);
    return model;
  }

  EngineOptions RandomOptions() {
    EngineOptions options;
    options.max_running_sequences = random_.Between(1, model_.max_sequences);
    options.max_waiting_requests = random_.Between(0, 20);
    options.max_waiting_tokens = random_.Between(0, 300);
    options.max_step_tokens = model_.max_step_tokens;
    options.max_context_length = random_.Between(8, 40);
    return options;
  }

  Request RandomRequest() {
    const int context = e_.engine->options().max_context_length;
    Request request;
    if (random_.OneIn(3)) {
      std::vector<std::vector<TokenId>> inputs;
      do {
        inputs.push_back(Prompt(random_.Between(1, std::min(context, 12)), random_.Between(0, 99)));
      } while (random_.OneIn(2));
      request = Embed(std::move(inputs), static_cast<Pooling>(random_.Between(0, 3)));
    } else {
      request =
          Generate(Prompt(random_.Between(1, std::min(context - 1, 16)), random_.Between(0, 99)),
                   random_.Between(1, 20));
      GenerateParams& params = ParamsOf(request);
      if (random_.OneIn(2))
        params.sampling = {.temperature = 1, .seed = 1u + random_.Between(0, 9)};
      if (random_.OneIn(3)) params.stopping.stop_token_ids = {random_.Between(0, 49), 3, 9};
      if (random_.OneIn(3)) params.stopping.min_tokens = random_.Between(0, 4);
    }
    request.priority = static_cast<Priority>(random_.Between(0, 2));
    if (random_.OneIn(4)) request.deadline = e_.now + absl::Milliseconds(random_.Between(-5, 250));
    if (random_.OneIn(6)) request.queue_timeout = absl::Milliseconds(random_.Between(0, 100));
    return request;
  }

  void Submit() {
    Submitted submitted;
    submitted.request = RandomRequest();
    submitted.sink = e_.Submit(submitted.request);
    submitted.handle = e_.handle;
    if (submitted.sink != nullptr) {
      submitted.sink->on_end = [this, sink = submitted.sink.get(),
                                deadline = submitted.request.deadline] {
        EXPECT_FALSE(sink->status().ok() && e_.now >= deadline) << "a success after the deadline";
      };
    } else {
      ++refused_;
      ++(*outcomes_)[absl::StrCat("refused: ", absl::StatusCodeToString(e_.refusal.code()), " ",
                                  DetailsOf(e_.refusal).reason)];
      return;
    }
    total_tokens_ += PromptTokens(submitted.request);
    if (const auto* generate = std::get_if<GenerateParams>(&submitted.request.params)) {
      total_tokens_ += generate->stopping.max_tokens;
    }
    submitted_.push_back(std::move(submitted));
  }

  static int64_t PromptTokens(const Request& request) {
    if (const auto* generate = std::get_if<GenerateParams>(&request.params)) {
      return static_cast<int64_t>(generate->prompt.size());
    }
    int64_t tokens = 0;
    for (const auto& input : std::get<EmbedParams>(request.params).inputs) {
      tokens += static_cast<int64_t>(input.size());
    }
    return tokens;
  }

  bool Step() {
    const absl::Time before = e_.now;
    std::vector<Submitted*> must_end;
    for (Submitted& submitted : submitted_) {
      if (submitted.sink->end.has_value()) continue;
      if (submitted.cancelled || before >= submitted.request.deadline)
        must_end.push_back(&submitted);
    }
    const bool worked = e_.engine->Step();
    for (const Submitted* submitted : must_end) {
      EXPECT_TRUE(submitted->sink->end.has_value()) << "still there a step later";
    }
    const EngineLoad load = e_.engine->load();
    EXPECT_EQ(load.kv_blocks_free + load.kv_blocks_used + load.kv_blocks_cached,
              model_.kv_num_blocks);
    for (const TaskLoad& task : load.tasks) EXPECT_GE(std::min(task.running, task.waiting), 0);
    EXPECT_LE(load.running() + load.waiting(), e_.engine->options().max_running_sequences +
                                                   e_.engine->options().max_waiting_requests);
    EXPECT_TRUE(e_.runner->violations().empty()) << e_.runner->violations().front();
    return worked;
  }

  void CheckEnd() {
    int64_t completion_tokens = 0;
    int64_t prompt_tokens_ok = 0;
    int64_t prompt_tokens = 0;
    int64_t preemptions = 0;
    for (const Submitted& submitted : submitted_) {
      const RecordingSink& sink = *submitted.sink;
      ASSERT_TRUE(sink.end.has_value());
      EXPECT_EQ(sink.calls_after_end, 0);
      preemptions += sink.end->timings.preemptions;
      prompt_tokens += PromptTokens(submitted.request);
      EXPECT_EQ(sink.end->usage.prompt_tokens, PromptTokens(submitted.request));
      EXPECT_EQ(sink.end->usage.completion_tokens, static_cast<int64_t>(sink.ids.size()));
      const absl::Status& status = sink.end->status;
      ++(*outcomes_)[status.ok() ? "ended: OK"
                                 : absl::StrCat("ended: ", absl::StatusCodeToString(status.code()),
                                                " ", DetailsOf(status).reason)];
      if (status.ok()) {
        completion_tokens += sink.end->usage.completion_tokens;
        prompt_tokens_ok += sink.end->usage.prompt_tokens;
      }
      CheckAnswer(submitted);
    }
    const CountingObserver& observer = e_.observer;
    const auto wasted = [&observer](const char* reason) {
      const auto it = observer.wasted_tokens.find(reason);
      return it == observer.wasted_tokens.end() ? 0 : it->second;
    };
    EXPECT_EQ(observer.generated_tokens,
              completion_tokens + wasted("cancel") + wasted("deadline") + wasted("error"));
    EXPECT_EQ(observer.finished.size(), submitted_.size());
    EXPECT_EQ(observer.preemptions, preemptions);
    int64_t computed = 0;
    for (const auto& [task, tokens] : observer.prompt_tokens) computed += tokens;
    for (const auto& [task, tokens] : observer.cached_tokens) computed += tokens;
    EXPECT_GE(computed, prompt_tokens_ok);
    EXPECT_LE(computed, prompt_tokens);
    int refused = 0;
    for (const auto& [reason, count] : observer.rejected) refused += count;
    EXPECT_EQ(refused, refused_);
    for (const StepStats& step : observer.steps) {
      EXPECT_LE(step.prefill_tokens + step.decode_tokens, model_.max_step_tokens);
      EXPECT_LE(step.sequences, SlotsFor(e_.engine->options().max_running_sequences));
    }
    const EngineLoad load = e_.engine->load();
    EXPECT_EQ(load.running() + load.waiting(), 0);
    EXPECT_EQ(load.waiting_tokens, 0);
    EXPECT_EQ(load.kv_blocks_used, 0);
    (*outcomes_)["preemptions"] += observer.preemptions;
    (*outcomes_)["steps that decode and prefill"] +=
        static_cast<int>(std::ranges::count_if(observer.steps, [](const StepStats& step) {
          return step.decode_tokens > 0 && step.prefill_tokens > 0;
        }));
  }

  // What was delivered is right, and all of it when the status is OK.
  static void CheckAnswer(const Submitted& submitted) {
    const RecordingSink& sink = *submitted.sink;
    const bool ok = sink.end->status.ok();
    if (const auto* generate = std::get_if<GenerateParams>(&submitted.request.params)) {
      EXPECT_EQ(!sink.end->completions.empty(), ok);
      std::vector<TokenId> tokens = generate->prompt;
      const StoppingParams& stopping = generate->stopping;
      for (size_t i = 0; i < sink.ids.size(); ++i) {
        SampleRequest sample;
        sample.params = &generate->sampling;
        sample.index = i;
        sample.vocab_size = 50;
        if (static_cast<int32_t>(i) < stopping.min_tokens) sample.banned = stopping.stop_token_ids;
        ASSERT_EQ(sink.ids[i], FakeModelRunner::Next(tokens, sample).id) << "token " << i;
        tokens.push_back(sink.ids[i]);
        const bool stops = std::ranges::count(stopping.stop_token_ids, tokens.back()) > 0;
        EXPECT_FALSE(stops && i + 1 < sink.ids.size()) << "generated past a stop token";
      }
      if (!ok) return;
      const auto generated = static_cast<int32_t>(sink.ids.size());
      switch (sink.end->completions.front().finish_reason) {
        case FinishReason::kLength:
          EXPECT_EQ(generated, stopping.max_tokens);
          break;
        case FinishReason::kStop:
          EXPECT_EQ(sink.end->completions.front().matched_token_id, sink.ids.back());
          break;
        case FinishReason::kContext:
          EXPECT_LT(generated, stopping.max_tokens);
          break;
        case FinishReason::kEos:
          ADD_FAILURE() << "there is no end token";
      }
    } else {
      const auto& embed = std::get<EmbedParams>(submitted.request.params);
      EXPECT_EQ(sink.embeddings.size(), static_cast<size_t>(sink.num_embeddings));
      EXPECT_TRUE(!ok || sink.embeddings.size() == embed.inputs.size());
      for (const auto& [index, vectors] : sink.embeddings) {
        const std::vector<TokenId>& input = embed.inputs[index];
        if (embed.pooling == Pooling::kLastToken) {
          EXPECT_EQ(vectors.at(0), FakeModelRunner::Hidden(input));
          continue;
        }
        Pooler pooler({embed.pooling, embed.normalize, embed.dimensions},
                      FakeModelRunner::kHiddenSize);
        for (size_t i = 1; i <= input.size(); ++i) {
          pooler.Add(FakeModelRunner::Hidden(absl::MakeSpan(input).subspan(0, i)));
        }
        EXPECT_EQ(vectors, pooler.Take());
      }
    }
  }

  Random random_;
  std::map<std::string, int>* const outcomes_;
  const FakeModelRunner::Options model_;
  SteppedEngine e_;
  std::vector<Submitted> submitted_;
  int refused_ = 0;
  int64_t total_tokens_ = 0;
};

TEST(EnginePropertyTest, KeepsItsPromisesUnderRandomTraffic) {
  std::map<std::string, int> outcomes;
  for (int seed = 1; seed <= kTraces; ++seed) {
    SCOPED_TRACE(absl::StrCat("trace ", seed));
    Trace(seed, &outcomes).Run();
    if (HasFailure()) return;
  }
  // The promises were really put to the test.
  for (const char* outcome :
       {"ended: OK", "ended: CANCELLED ", "ended: DEADLINE_EXCEEDED ", "ended: INTERNAL ",
        "ended: RESOURCE_EXHAUSTED QUEUE_TIMEOUT", "ended: UNAVAILABLE ",
        "refused: DEADLINE_EXCEEDED ", "refused: FAILED_PRECONDITION TOO_LARGE",
        "refused: RESOURCE_EXHAUSTED QUEUE_FULL", "refused: RESOURCE_EXHAUSTED TOKENS_FULL",
        "preemptions", "steps that decode and prefill"}) {
    EXPECT_GE(outcomes[outcome], 100) << outcome;
  }
  for (const auto& [outcome, count] : outcomes) std::cout << count << "\t" << outcome << "\n";
}

}  // namespace
}  // namespace ddl
