#ifndef DDL_TESTS_SERVER_ENGINE_ENGINE_FIXTURE_H_
#define DDL_TESTS_SERVER_ENGINE_ENGINE_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "tests/server/engine/fake_model_runner.h"

namespace ddl {

// Keeps everything a request was sent. For tests that step the engine themselves.
struct RecordingSink final : RequestSink {
  void OnStart(RequestStart request_start) override {
    calls_after_end += end.has_value() || start.has_value();
    start = std::move(request_start);
  }
  SinkState OnDelta(CompletionDelta delta) override {
    calls_after_end += end.has_value();
    calls_before_start += !start.has_value();
    text += delta.text;
    for (SampledToken& token : delta.tokens) {
      completions[delta.index].push_back(token.id);
      if (delta.index == 0) ids.push_back(token.id);
      tokens.push_back(std::move(token));
    }
    ++num_deltas;
    return on_delta ? on_delta() : state;
  }
  void OnEmbedding(InputEmbedding embedding) override {
    calls_after_end += end.has_value();
    calls_before_start += !start.has_value();
    embeddings.emplace(embedding.index, std::move(embedding.vectors));
    ++num_embeddings;
  }
  void OnScore(InputScore score) override {
    calls_after_end += end.has_value();
    calls_before_start += !start.has_value();
    scores.emplace(score.index, std::move(score.tokens));
  }
  void OnEnd(RequestEnd request_end) override {
    calls_after_end += end.has_value();
    end = std::move(request_end);
    if (on_end) on_end();
  }

  absl::Status status() const {
    return end.has_value() ? end->status : absl::UnknownError("has not ended");
  }

  std::string text;
  std::vector<TokenId> ids;                             // of completion 0
  std::map<int32_t, std::vector<TokenId>> completions;  // by index
  std::vector<SampledToken> tokens;
  std::map<int32_t, std::vector<std::vector<float>>> embeddings;
  std::map<int32_t, std::vector<SampledToken>> scores;
  std::optional<RequestStart> start;
  SinkState state = SinkState::kReady;  // what OnDelta answers
  int num_deltas = 0;
  int num_embeddings = 0;
  int calls_after_end = 0;     // or a second start
  int calls_before_start = 0;  // of outputs
  std::optional<RequestEnd> end;
  std::function<void()> on_end;
  std::function<SinkState()> on_delta;  // in place of `state`
};

// Adds up what the engine reports.
struct CountingObserver final : EngineObserver {
  void OnStep(const StepStats& step) override { steps.push_back(step); }
  void OnLoad(const EngineLoad& load) override { last_load = load; }
  void OnPromptTokens(Task task, PromptSource source, int64_t tokens) override {
    (source == PromptSource::kComputed ? prompt_tokens : cached_tokens)[task] += tokens;
  }
  void OnPrefixCacheQuery(int64_t query, int64_t hit) override {
    query_tokens += query;
    hit_tokens += hit;
  }
  void OnStreamStall() override { ++stalls; }
  void OnGateSample(const GateSample& sample) override {
    gate_samples.emplace_back(sample.layer, sample.mlp,
                              std::vector<float>(sample.beta.begin(), sample.beta.end()));
  }
  void OnGeneratedTokens(int64_t tokens) override { generated_tokens += tokens; }
  void OnWastedTokens(WasteReason reason, int64_t tokens) override {
    wasted_tokens[std::string(ToString(reason))] += tokens;
  }
  void OnTimeToFirstToken(absl::Duration duration) override {
    times_to_first_token.push_back(duration);
  }
  void OnInterTokenLatency(absl::Duration duration) override {
    inter_token_latencies.push_back(duration);
  }
  void OnPreemption() override { ++preemptions; }
  void OnNonfiniteLogits() override { ++nonfinite_logits; }
  void OnRejected(RejectReason reason) override { ++rejected[std::string(ToString(reason))]; }
  void OnFinished(const FinishedRequest& request) override {
    finished.push_back(request);
    ++finish_reasons[std::string(ToString(request.reason))];
  }

  std::vector<StepStats> steps;
  EngineLoad last_load;
  std::map<Task, int64_t> prompt_tokens;
  std::map<Task, int64_t> cached_tokens;
  int64_t generated_tokens = 0;
  std::map<std::string, int64_t> wasted_tokens;
  std::vector<absl::Duration> times_to_first_token;
  std::vector<absl::Duration> inter_token_latencies;
  int64_t query_tokens = 0;
  int64_t hit_tokens = 0;
  int stalls = 0;
  std::vector<std::tuple<int32_t, bool, std::vector<float>>> gate_samples;
  int preemptions = 0;
  int nonfinite_logits = 0;
  std::map<std::string, int> rejected;
  std::vector<FinishedRequest> finished;
  std::map<std::string, int> finish_reasons;
};

// An engine over the fake model, stepped by the test, with a clock that only the test moves.
class SteppedEngine {
 public:
  explicit SteppedEngine(const FakeModelRunner::Options& model = {}, EngineOptions options = {},
                         std::shared_ptr<const Tokenizer> tokenizer = nullptr) {
    options.max_step_tokens = std::min(options.max_step_tokens, model.max_step_tokens);
    auto owned = std::make_unique<FakeModelRunner>(model);
    runner = owned.get();
    auto created = Engine::Create(options, std::move(owned), std::move(tokenizer), &observer,
                                  [this] { return now; });
    if (!created.ok()) std::abort();
    engine = *std::move(created);
  }

  // A step with all that comes of it, delivered too, where the step thread would first begin the
  // next one.
  bool Step() {
    const bool worked = engine->Step();
    engine->Settle();
    return worked;
  }
  // Runs until nothing is left to do.
  int Run() {
    int steps = 0;
    while (Step()) ++steps;
    return steps;
  }
  // The sink of a request that was admitted; null when it was refused.
  std::shared_ptr<RecordingSink> Submit(
      Request request, std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>()) {
    auto submitted = engine->Submit(std::move(request), sink);
    refusal = submitted.status();
    if (!submitted.ok()) return nullptr;
    handle = *submitted;
    return sink;
  }

  absl::Time now = absl::FromUnixSeconds(1'000'000);
  CountingObserver observer;
  FakeModelRunner* runner = nullptr;
  std::unique_ptr<Engine> engine;
  RequestHandle handle;  // of the last request admitted
  absl::Status refusal;  // of the last Submit
};

// After everything has ended.
inline void ExpectIdle(const SteppedEngine& e) {
  const EngineLoad load = e.engine->load();
  for (const TaskLoad& task : load.tasks) EXPECT_EQ(task.running + task.waiting, 0);
  EXPECT_EQ(load.waiting_tokens, 0);
  EXPECT_EQ(load.kv_blocks_used, 0);
  EXPECT_EQ(load.kv_blocks_free + load.kv_blocks_cached, e.engine->model().kv_num_blocks);
  EXPECT_EQ(load.paused_slow_reader, 0);
  EXPECT_EQ(load.paused_preempted, 0);
  EXPECT_EQ(e.observer.last_load.kv_blocks_used, 0);
  EXPECT_TRUE(e.runner->violations().empty()) << e.runner->violations().front();
}

// A greedy Generate.
inline Request Generate(std::vector<TokenId> prompt, int32_t max_tokens) {
  GenerateParams params;
  params.prompt = std::move(prompt);
  params.sampling.temperature = 0;
  params.stopping.max_tokens = max_tokens;
  Request request;
  request.params = std::move(params);
  return request;
}

inline GenerateParams& ParamsOf(Request& request) {
  return std::get<GenerateParams>(request.params);
}

inline Request Embed(std::vector<std::vector<TokenId>> inputs,
                     Pooling pooling = Pooling::kLastToken) {
  EmbedParams params;
  params.inputs = std::move(inputs);
  params.pooling = pooling;
  params.normalize = false;
  Request request;
  request.params = std::move(params);
  return request;
}

inline Request Score(std::vector<std::vector<TokenId>> inputs) {
  Request request;
  request.params = ScoreParams{.inputs = std::move(inputs)};
  return request;
}

// `length` tokens that depend on `seed`.
inline std::vector<TokenId> Prompt(int32_t length, int32_t seed = 0) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < length; ++i) tokens.push_back((seed * 31 + i * 7 + 3) % 50);
  return tokens;
}

// What the fake model generates after a prompt, from the tokens alone.
inline std::vector<TokenId> ExpectedTokens(std::vector<TokenId> tokens, int32_t count,
                                           const SamplingParams& sampling = {.temperature = 0},
                                           TokenId vocab_size = 50) {
  std::vector<TokenId> generated;
  for (int32_t i = 0; i < count; ++i) {
    SampleRequest sample;
    sample.params = &sampling;
    sample.index = i;
    sample.vocab_size = vocab_size;
    tokens.push_back(FakeModelRunner::Next(tokens, sample).id);
    generated.push_back(tokens.back());
  }
  return generated;
}

}  // namespace ddl

#endif  // DDL_TESTS_SERVER_ENGINE_ENGINE_FIXTURE_H_
