// Random traffic over tiny caches: whatever arrives, is cancelled, expires, is not read or fails,
// nobody is lost, nothing leaks, and every answer is the right one. A trace is a plain value, so
// that one that fails can be made small before it is printed.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_details.h"
#include "server/engine/engine.h"
#include "server/engine/pooling.h"
#include "server/engine/scheduler.h"
#include "tests/server/engine/engine_fixture.h"

namespace ddl {
namespace {

constexpr int kTraces = 12000;
constexpr TokenId kVocab = 50;

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

struct Input {
  int length = 1;
  int seed = 0;  // of Prompt
};

// One request and what its client does.
struct Arrival {
  int step = 0;  // arrives before it
  Task task = Task::kGenerate;
  std::vector<Input> inputs;  // one, the prompt, of a Generate
  Priority priority = Priority::kNormal;
  std::optional<int> deadline_ms;       // after its arrival
  std::optional<int> queue_timeout_ms;  // likewise
  std::optional<int> cancel_after;      // steps
  std::optional<int> full_after;        // deltas, again and again
  std::optional<int> resume_after;      // steps; none: never
  bool ddl_stats = false;
  // Generate
  int max_tokens = 1;
  int n = 1;
  std::optional<uint64_t> seed;  // none: greedy
  std::vector<TokenId> stop;
  int min_tokens = 0;
  int prompt_logprobs = -1;
  bool use_prefix_cache = true;
  // Embed
  Pooling pooling = Pooling::kLastToken;
};

struct Trace {
  FakeModelRunner::Options model;
  EngineOptions options;
  std::vector<Arrival> arrivals;
  uint64_t clock_seed = 0;     // of how long each step takes
  std::set<int> failing;       // steps
  std::optional<int> stop_at;  // step: the server stops
};

std::string ToString(const Arrival& a) {
  const char* const tasks[] = {"generate", "embed", "score"};
  std::string text = absl::StrCat("at step ", a.step, ": ", tasks[static_cast<int>(a.task)]);
  for (const Input& input : a.inputs) absl::StrAppend(&text, " ", input.length, "/", input.seed);
  const auto number = [&text](const char* name, std::optional<int64_t> value) {
    if (value.has_value()) absl::StrAppend(&text, " ", name, "=", *value);
  };
  if (a.priority != Priority::kNormal) number("priority", static_cast<int>(a.priority));
  if (a.task == Task::kGenerate) number("max_tokens", a.max_tokens);
  if (a.n > 1) number("n", a.n);
  if (a.min_tokens > 0) number("min_tokens", a.min_tokens);
  if (a.prompt_logprobs >= 0) number("prompt_logprobs", a.prompt_logprobs);
  number("seed", a.seed);
  for (const TokenId id : a.stop) number("stop", id);
  if (a.ddl_stats) absl::StrAppend(&text, " ddl_stats");
  if (!a.use_prefix_cache) absl::StrAppend(&text, " no prefix cache");
  if (a.pooling != Pooling::kLastToken) number("pooling", static_cast<int>(a.pooling));
  number("deadline_ms", a.deadline_ms);
  number("queue_timeout_ms", a.queue_timeout_ms);
  number("cancel_after", a.cancel_after);
  number("full_after", a.full_after);
  number("resume_after", a.resume_after);
  return text;
}

std::string ToString(const Trace& trace) {
  const EngineOptions& options = trace.options;
  std::string text = absl::StrCat(
      trace.model.kv_num_blocks, " blocks of ", trace.model.kv_block_size, ", ",
      trace.model.max_sequences, " slots, ", options.max_running_sequences, " run, ",
      options.max_waiting_requests, " and ", options.max_waiting_tokens, " tokens wait, steps of ",
      options.max_step_tokens, ", context ", options.max_context_length, ", aging ",
      absl::FormatDuration(options.priority_aging), ", slow reader ",
      absl::FormatDuration(options.slow_reader_timeout),
      options.prefix_cache ? "" : ", no prefix cache", ", clock ", trace.clock_seed, ", ",
      trace.model.max_in_flight_steps, " steps in flight");
  for (const int step : trace.failing) absl::StrAppend(&text, ", step ", step, " fails");
  if (trace.stop_at.has_value()) absl::StrAppend(&text, ", stops at ", *trace.stop_at);
  for (const Arrival& arrival : trace.arrivals) absl::StrAppend(&text, "\n  ", ToString(arrival));
  return text;
}

Arrival RandomArrival(int step, int context, Random& random) {
  Arrival a;
  a.step = step;
  // Few seeds: prompts begin alike. Seed 10 begins with the token whose logits overflow.
  const auto input = [&](int longest) {
    return Input{random.Between(1, std::min(context - 1, longest)),
                 random.OneIn(30) ? 10 : random.Between(0, random.OneIn(4) ? 60 : 3)};
  };
  switch (random.Between(0, 5)) {
    case 0:
      a.task = Task::kEmbed;
      a.pooling =
          random.OneIn(2) ? Pooling::kLastToken : static_cast<Pooling>(random.Between(1, 3));
      break;
    case 1:
      a.task = Task::kScore;
      break;
    default:
      break;
  }
  if (a.task == Task::kGenerate) {
    a.inputs.push_back(input(20));
    a.max_tokens = random.Between(1, 24);
    if (random.OneIn(4)) a.n = random.Between(2, 4);
    if (random.OneIn(2)) a.seed = random.Between(1, 9);
    if (random.OneIn(4)) a.stop = {random.Between(0, kVocab - 1), 3, 9};
    if (random.OneIn(4)) a.min_tokens = random.Between(0, 4);
    if (random.OneIn(8)) a.prompt_logprobs = random.Between(0, 2);
    a.use_prefix_cache = !random.OneIn(6);
    if (random.OneIn(5)) a.full_after = random.Between(1, 8);
    if (a.full_after.has_value() && !random.OneIn(3)) a.resume_after = random.Between(0, 12);
  } else {
    do a.inputs.push_back(input(12));
    while (random.OneIn(2));
  }
  if (a.task != Task::kScore) a.ddl_stats = random.OneIn(8);
  a.priority = static_cast<Priority>(random.Between(0, 2));
  if (random.OneIn(4)) a.deadline_ms = random.Between(-5, 300);
  if (random.OneIn(6)) a.queue_timeout_ms = random.Between(0, 100);
  if (random.OneIn(6)) a.cancel_after = random.Between(0, 15);
  return a;
}

Trace RandomTrace(uint64_t seed) {
  Random random(seed);
  Trace trace;
  trace.clock_seed = seed;
  EngineOptions& options = trace.options;
  options.max_running_sequences = random.Between(1, 8);
  options.max_waiting_requests = random.Between(0, 20);
  options.max_waiting_tokens = random.Between(0, 300);
  options.max_context_length = random.Between(8, 40);
  options.max_step_tokens = random.Between(options.max_running_sequences, 24);
  options.priority_aging = absl::Milliseconds(random.Between(5, 500));
  options.slow_reader_timeout = absl::Milliseconds(random.Between(20, 300));
  options.prefix_cache = !random.OneIn(4);
  trace.model.kv_block_size = random.Between(1, 6);
  trace.model.kv_num_blocks = random.Between(2, random.OneIn(3) ? 8 : 40);
  trace.model.max_sequences = random.OneIn(4) ? random.Between(1, options.max_running_sequences)
                                              : SlotsFor(options.max_running_sequences);
  trace.model.max_step_tokens = options.max_step_tokens;
  const int steps = random.Between(1, 40);
  for (int step = 0; step < steps; ++step) {
    while (random.OneIn(2)) {
      trace.arrivals.push_back(RandomArrival(step, options.max_context_length, random));
    }
    if (random.OneIn(150)) trace.failing.insert(step + 1);
  }
  if (random.OneIn(10)) trace.stop_at = random.Between(0, steps + 10);
  return trace;
}

Request ToRequest(const Arrival& arrival, absl::Time now) {
  std::vector<std::vector<TokenId>> inputs;
  for (const Input& input : arrival.inputs) inputs.push_back(Prompt(input.length, input.seed));
  Request request;
  if (arrival.task == Task::kGenerate) {
    request = Generate(inputs.front(), arrival.max_tokens);
    GenerateParams& params = ParamsOf(request);
    params.n = arrival.n;
    if (arrival.seed.has_value()) {
      params.sampling.temperature = 1;
      params.sampling.seed = *arrival.seed;
    }
    params.stopping.stop_token_ids = arrival.stop;
    params.stopping.min_tokens = arrival.min_tokens;
    params.prompt_logprobs = arrival.prompt_logprobs;
    params.use_prefix_cache = arrival.use_prefix_cache;
    params.ddl_stats = arrival.ddl_stats;
  } else if (arrival.task == Task::kEmbed) {
    request = Embed(std::move(inputs), arrival.pooling);
    std::get<EmbedParams>(request.params).ddl_stats = arrival.ddl_stats;
  } else {
    request = Score(std::move(inputs));
  }
  request.priority = arrival.priority;
  if (arrival.deadline_ms.has_value()) {
    request.deadline = now + absl::Milliseconds(*arrival.deadline_ms);
  }
  if (arrival.queue_timeout_ms.has_value()) {
    request.queue_timeout = absl::Milliseconds(*arrival.queue_timeout_ms);
  }
  return request;
}

using Outcomes = std::map<std::string, int>;

// Runs a trace against its promises.
class TraceRun {
 public:
  TraceRun(const Trace& trace, Outcomes* outcomes)
      : trace_(trace), outcomes_(outcomes), e_(trace.model, trace.options) {
    e_.runner->on_forward = [this](auto) {
      ++forwards_;
      e_.now += absl::Milliseconds(Random(trace_.clock_seed * 1000 + forwards_).Between(0, 20));
      return trace_.failing.contains(forwards_) ? absl::UnavailableError("the device is gone")
                                                : absl::OkStatus();
    };
    e_.runner->on_begin = [this](auto) {
      (*outcomes_)["steps begun ahead"] += e_.runner->num_begun() - 1 > e_.runner->num_steps();
    };
    e_.runner->is_not_finite = [](const SequenceChunk& chunk) {
      return chunk.tokens[0] == 13 && chunk.tokens.size() % 5 == 0;
    };
  }

  // What went wrong first; empty when every promise was kept.
  std::string Run() {
    clients_.reserve(trace_.arrivals.size());
    int64_t work = 0;
    int last_arrival = 0;
    for (const Arrival& arrival : trace_.arrivals) {
      for (const Input& input : arrival.inputs) {
        work += int64_t{arrival.n} * (input.length + arrival.max_tokens);
      }
      last_arrival = std::max(last_arrival, arrival.step);
    }
    // Each step brings somebody on, and what is computed again is less than what is new; a step
    // without anything to compute passes time, and nobody is paused for longer than the timeout.
    const int64_t limit = last_arrival + 200 + 4 * work;
    for (step_ = 0; failure_.empty() && (step_ <= last_arrival || num_open() > 0); ++step_) {
      if (trace_.stop_at == step_) {
        e_.engine->Stop();
        break;
      }
      Check(step_ <= limit, "somebody starves");
      for (const Arrival& arrival : trace_.arrivals) {
        if (arrival.step == step_) Submit(arrival);
      }
      for (Client& client : clients_) Act(client);
      Step();
    }
    if (failure_.empty()) CheckEnd();
    if (failure_.empty() && !trace_.stop_at.has_value()) CheckCache();
    e_.engine->Stop();  // while the clients of those that are left are still there
    return failure_;
  }

 private:
  struct Client {
    const Arrival* arrival = nullptr;
    Request request;
    RequestHandle handle;
    std::shared_ptr<RecordingSink> sink;
    bool cancelled = false;
    bool seen_started = false;
    std::optional<int> full_at;  // step
    std::optional<absl::Time> full_since;
  };

  template <typename... Parts>
  void Check(bool holds, const Parts&... parts) {
    if (!holds && failure_.empty()) failure_ = absl::StrCat("step ", step_, ": ", parts...);
  }

  int num_open() const {
    return static_cast<int>(std::ranges::count_if(
        clients_, [](const Client& client) { return !client.sink->end.has_value(); }));
  }

  void Submit(const Arrival& arrival) {
    Client client;
    client.arrival = &arrival;
    client.request = ToRequest(arrival, e_.now);
    client.sink = std::make_shared<RecordingSink>();
    if (e_.Submit(client.request, client.sink) == nullptr) {
      ++refused_;
      const std::string reason = DetailsOf(e_.refusal).reason;
      ++(*outcomes_)[reason.empty() ? "refused: deadline past" : "refused: " + reason];
      return;
    }
    client.handle = e_.handle;
    clients_.push_back(std::move(client));
    Client* const added = &clients_.back();  // stays where it is: room was reserved
    added->sink->on_delta = [this, added] {
      const std::optional<int> full_after = added->arrival->full_after;
      if (!full_after.has_value() || added->sink->num_deltas % *full_after != 0) {
        return SinkState::kReady;
      }
      if (!added->full_at.has_value()) {
        added->full_at = step_;
        added->full_since = e_.now;
      }
      return SinkState::kFull;
    };
    added->sink->on_end = [this, added] {
      Check(!added->sink->status().ok() || e_.now < added->request.deadline,
            "a success after the deadline");
    };
  }

  void Act(Client& client) {
    if (client.arrival->cancel_after == step_ - client.arrival->step) {
      client.cancelled = !client.sink->end.has_value();
      e_.engine->Cancel(client.handle);
    }
    if (client.full_at.has_value() && client.arrival->resume_after.has_value() &&
        step_ > *client.full_at + *client.arrival->resume_after) {
      client.full_at.reset();
      client.full_since.reset();
      e_.engine->Resume(client.handle);
    }
  }

  void Step() {
    std::vector<const Client*> must_end;
    for (const Client& client : clients_) {
      if (client.sink->end.has_value()) continue;
      if (client.cancelled || e_.now >= client.request.deadline ||
          (client.full_since.has_value() &&
           e_.now >= *client.full_since + trace_.options.slow_reader_timeout)) {
        must_end.push_back(&client);
      }
    }
    const int steps = e_.runner->num_begun() + e_.runner->num_steps();
    const bool worked = e_.engine->Step();
    if (!worked) e_.now += absl::Milliseconds(10);
    if (!e_.runner->violations().empty()) Check(false, e_.runner->violations().front());
    for (const Client* client : must_end) {
      Check(client->sink->end.has_value(), "still there a step after it had to end");
    }
    const bool computed = e_.runner->num_begun() + e_.runner->num_steps() > steps;
    const bool all_paused = std::ranges::all_of(clients_, [](const Client& client) {
      return client.sink->end.has_value() || client.full_since.has_value();
    });
    Check(computed || all_paused, "nothing was computed for those who wait");
    CheckOrder();
    const EngineLoad load = e_.engine->load();
    Check(load.kv_blocks_free + load.kv_blocks_used + load.kv_blocks_cached ==
              trace_.model.kv_num_blocks,
          "blocks are lost");
    for (const TaskLoad& task : load.tasks) {
      Check(task.running >= 0 && task.waiting >= 0, "a negative load");
    }
    Check(load.running() + load.waiting() == num_open(), "the load is not what is there");
    Check(load.running() + load.waiting() <=
              e_.engine->options().max_running_sequences + trace_.options.max_waiting_requests,
          "more than may be admitted");
  }

  // Nobody is overtaken by one of the same kind who came later and is not more urgent.
  void CheckOrder() {
    std::vector<const Client*> waiting;  // before the client at hand
    for (Client& client : clients_) {
      if (client.arrival->prompt_logprobs >= 0) continue;  // tells of its start later
      const bool started = client.sink->start.has_value();
      if (started && !client.seen_started) {
        for (const Client* earlier : waiting) {
          Check((earlier->arrival->task == Task::kGenerate) !=
                        (client.arrival->task == Task::kGenerate) ||
                    earlier->arrival->priority > client.arrival->priority,
                "overtaken: ", ToString(*earlier->arrival), ", by: ", ToString(*client.arrival));
        }
      }
      client.seen_started = started;
      if (!started && !client.sink->end.has_value()) waiting.push_back(&client);
    }
  }

  void CheckEnd() {
    int64_t completion_tokens = 0;
    int64_t prompt_tokens_ok = 0;
    int64_t prompt_tokens = 0;
    int64_t preemptions = 0;
    for (const Client& client : clients_) {
      const RecordingSink& sink = *client.sink;
      Check(sink.end.has_value(), "a request never ended");
      if (!failure_.empty()) return;
      Check(sink.calls_after_end == 0, "a call after the end, or a second start");
      Check(sink.calls_before_start == 0, "output before the start");
      const RequestEnd& end = *sink.end;
      preemptions += end.timings.preemptions;
      int64_t own_tokens = 0;
      for (const Input& input : client.arrival->inputs) own_tokens += input.length;
      Check(end.usage.prompt_tokens == own_tokens, "prompt tokens in usage");
      Check(end.usage.cached_tokens <= own_tokens, "more cached than there is");
      prompt_tokens += own_tokens;
      Check(end.usage.completion_tokens == static_cast<int64_t>(sink.tokens.size()),
            "completion tokens in usage");
      const std::string reason = DetailsOf(end.status).reason;
      ++(*outcomes_)[end.status.ok()  ? "OK"
                     : reason.empty() ? std::string(absl::StatusCodeToString(end.status.code()))
                                      : reason];
      if (end.status.ok()) {
        completion_tokens += end.usage.completion_tokens;
        prompt_tokens_ok += own_tokens;
      }
      CheckAnswer(client);
    }
    const CountingObserver& observer = e_.observer;
    const auto wasted = [&observer](const char* reason) {
      const auto it = observer.wasted_tokens.find(reason);
      return it == observer.wasted_tokens.end() ? 0 : it->second;
    };
    Check(observer.generated_tokens ==
              completion_tokens + wasted("cancel") + wasted("deadline") + wasted("error"),
          "generated tokens do not add up");
    Check(observer.finished.size() == clients_.size(), "finished requests do not add up");
    Check(observer.preemptions == preemptions, "preemptions do not add up");
    int64_t computed = 0;
    for (const auto& [task, tokens] : observer.prompt_tokens) computed += tokens;
    for (const auto& [task, tokens] : observer.cached_tokens) computed += tokens;
    Check(prompt_tokens_ok <= computed && computed <= prompt_tokens,
          "prompt tokens do not add up: ", prompt_tokens_ok, " <= ", computed,
          " <= ", prompt_tokens);
    int refused = 0;
    for (const auto& [reason, count] : observer.rejected) refused += count;
    Check(refused == refused_, "refusals do not add up");
    for (const StepStats& step : observer.steps) {
      Check(step.prefill_tokens + step.decode_tokens <= trace_.options.max_step_tokens,
            "a step exceeds its budget");
      Check(step.sequences <= trace_.model.max_sequences, "a step exceeds the slots");
    }
    const EngineLoad load = e_.engine->load();
    Check(load.running() + load.waiting() == 0 && load.waiting_tokens == 0, "somebody is left");
    Check(load.kv_blocks_used == 0, "blocks leak");
    Check(load.paused_slow_reader + load.paused_preempted == 0, "paused sequences are left");
    Check(trace_.options.prefix_cache || load.kv_blocks_cached + observer.hit_tokens == 0,
          "a cache where none is wanted");
    (*outcomes_)["preempted"] += observer.preemptions;
    (*outcomes_)["paused"] += observer.stalls;
    (*outcomes_)["prefix hit"] += observer.hit_tokens > 0;
    (*outcomes_)["steps that decode and prefill"] +=
        static_cast<int>(std::ranges::count_if(observer.steps, [](const StepStats& step) {
          return step.decode_tokens > 0 && step.prefill_tokens > 0;
        }));
  }

  // What the prefix cache says that it has, it has: the conversations go on from there.
  void CheckCache() {
    e_.runner->on_forward = nullptr;
    e_.runner->is_not_finite = nullptr;
    int conversations = 0;
    for (const Client& client : clients_) {
      const auto* generate = std::get_if<GenerateParams>(&client.request.params);
      if (generate == nullptr || client.sink->ids.empty() || ++conversations > 2) continue;
      std::vector<TokenId> prompt = generate->prompt;
      prompt.insert(prompt.end(), client.sink->ids.begin(), client.sink->ids.end());
      const auto room = trace_.options.max_context_length - static_cast<int32_t>(prompt.size());
      if (room < 1) continue;
      const auto sink = e_.Submit(Generate(prompt, std::min(room, 3)));
      if (sink == nullptr) continue;
      e_.Run();
      Check(sink->ids == ExpectedTokens(prompt, std::min(room, 3)),
            "the cache is wrong about: ", ToString(*client.arrival));
    }
  }

  // What was delivered is right, and all of it when the status is OK.
  void CheckAnswer(const Client& client) {
    const RecordingSink& sink = *client.sink;
    const bool ok = sink.end->status.ok();
    if (const auto* generate = std::get_if<GenerateParams>(&client.request.params)) {
      Check(sink.end->completions.size() == (ok ? client.arrival->n : 0u), "number of ends");
      for (const auto& [index, ids] : sink.completions) {
        CheckCompletion(*generate, index, ids);
        if (ok) CheckCompletionEnd(*generate, sink.end->completions[index], ids);
      }
      if (ok) CheckScores(sink.start->prompt, generate->prompt, generate->prompt_logprobs);
      CheckStats(client, [&](int32_t i) {
        std::vector<TokenId> tokens = generate->prompt;
        const std::vector<TokenId>& ids = sink.completions.at(i);
        tokens.insert(tokens.end(), ids.begin(), ids.end() - 1);
        return tokens;
      });
    } else if (const auto* embed = std::get_if<EmbedParams>(&client.request.params)) {
      Check(!ok || sink.embeddings.size() == embed->inputs.size(), "an embedding is missing");
      Check(sink.embeddings.size() == static_cast<size_t>(sink.num_embeddings),
            "an embedding came twice");
      for (const auto& [index, vectors] : sink.embeddings) {
        const std::vector<TokenId>& input = embed->inputs[index];
        Pooler pooler({embed->pooling, embed->normalize, embed->dimensions},
                      FakeModelRunner::kHiddenSize);
        const size_t first = embed->pooling == Pooling::kLastToken ? input.size() : 1;
        for (size_t i = first; i <= input.size(); ++i) {
          pooler.Add(FakeModelRunner::Hidden(absl::MakeSpan(input).first(i)));
        }
        Check(vectors == pooler.Take(), "a wrong embedding");
      }
      CheckStats(client, [&](int32_t i) { return embed->inputs[i]; });
    } else {
      const auto& score = std::get<ScoreParams>(client.request.params);
      Check(!ok || sink.scores.size() == score.inputs.size(), "a score is missing");
      for (const auto& [index, scored] : sink.scores) CheckScores(scored, score.inputs[index], 0);
    }
  }

  void CheckCompletion(const GenerateParams& generate, int32_t index,
                       const std::vector<TokenId>& ids) {
    SamplingParams sampling = generate.sampling;
    sampling.seed += index;
    const StoppingParams& stopping = generate.stopping;
    std::vector<TokenId> tokens = generate.prompt;
    for (size_t i = 0; i < ids.size(); ++i) {
      SampleRequest sample;
      sample.params = &sampling;
      sample.index = i;
      sample.vocab_size = kVocab;
      if (static_cast<int32_t>(i) < stopping.min_tokens) sample.banned = stopping.stop_token_ids;
      Check(ids[i] == FakeModelRunner::Next(tokens, sample).id, "a wrong token: completion ", index,
            ", token ", i);
      tokens.push_back(ids[i]);
      const bool stops = std::ranges::count(stopping.stop_token_ids, ids[i]) > 0;
      Check(!stops || i + 1 == ids.size(), "generated past a stop token");
    }
  }

  void CheckCompletionEnd(const GenerateParams& generate, const CompletionEnd& end,
                          const std::vector<TokenId>& ids) {
    const auto generated = static_cast<int32_t>(ids.size());
    switch (end.finish_reason) {
      case FinishReason::kLength:
        Check(generated == generate.stopping.max_tokens, "ended by length too early");
        break;
      case FinishReason::kStop:
        Check(end.matched_token_id == ids.back(), "the stop token is not the last");
        break;
      case FinishReason::kContext:
        Check(static_cast<int32_t>(generate.prompt.size()) + generated ==
                  trace_.options.max_context_length,
              "ended by context too early");
        break;
      case FinishReason::kEos:
        Check(false, "there is no end token");
    }
  }

  void CheckScores(const std::vector<SampledToken>& scored, const std::vector<TokenId>& tokens,
                   int32_t logprobs) {
    Check(scored.size() == (logprobs >= 0 ? tokens.size() - 1 : 0), "number of scores");
    if (!failure_.empty()) return;
    for (size_t i = 0; i < scored.size(); ++i) {
      const SampledToken expected =
          FakeModelRunner::Score(absl::MakeSpan(tokens).first(i + 1), tokens[i + 1], logprobs);
      Check(scored[i].id == expected.id && scored[i].logprob == expected.logprob &&
                scored[i].top.size() == expected.top.size(),
            "a wrong score at ", i);
    }
  }

  // `tokens`: whose positions part i has computed.
  void CheckStats(const Client& client,
                  const std::function<std::vector<TokenId>(int32_t)>& tokens) {
    const auto& stats = client.sink->end->ddl_stats;
    const bool wanted = client.arrival->ddl_stats && client.sink->end->status.ok();
    const size_t parts =
        client.arrival->task == Task::kGenerate ? client.arrival->n : client.arrival->inputs.size();
    Check(stats.size() == (wanted ? parts : 0), "number of statistics");
    if (!failure_.empty()) return;
    for (size_t part = 0; part < stats.size(); ++part) {
      const std::vector<TokenId> past = tokens(static_cast<int32_t>(part));
      for (int32_t sublayer = 0; sublayer < 2; ++sublayer) {
        const std::vector<float>& beta = stats[part].at(sublayer).beta;
        Check(beta.size() == past.size(), "number of positions in statistics");
        if (!failure_.empty()) return;
        for (size_t i = 0; i < past.size(); ++i) {
          Check(beta[i] == FakeModelRunner::Beta(absl::MakeSpan(past).first(i + 1), sublayer),
                "wrong statistics");
        }
      }
    }
  }

  const Trace& trace_;
  Outcomes* const outcomes_;
  SteppedEngine e_;
  std::vector<Client> clients_;
  int step_ = 0;
  int forwards_ = 0;
  int refused_ = 0;
  std::string failure_;
};

// --- Making a failing trace small ----------------------------------------------------------

// What makes an arrival simpler, each on its own.
const std::function<void(Arrival&)> kSimplifications[] = {
    [](Arrival& a) { a.step = 0; },
    [](Arrival& a) { a.step /= 2; },
    [](Arrival& a) { a.n = 1; },
    [](Arrival& a) { a.priority = Priority::kNormal; },
    [](Arrival& a) { a.deadline_ms.reset(); },
    [](Arrival& a) { a.queue_timeout_ms.reset(); },
    [](Arrival& a) { a.cancel_after.reset(); },
    [](Arrival& a) { a.full_after.reset(), a.resume_after.reset(); },
    [](Arrival& a) { a.ddl_stats = false; },
    [](Arrival& a) { a.prompt_logprobs = -1; },
    [](Arrival& a) { a.stop.clear(); },
    [](Arrival& a) { a.min_tokens = 0; },
    [](Arrival& a) { a.seed.reset(); },
    [](Arrival& a) { a.use_prefix_cache = true; },
    [](Arrival& a) { a.inputs.resize(1); },
    [](Arrival& a) { a.max_tokens = (a.max_tokens + 1) / 2; },
    [](Arrival& a) { a.max_tokens = std::max(1, a.max_tokens - 1); },
    [](Arrival& a) { a.inputs[0].length = (a.inputs[0].length + 1) / 2; },
    [](Arrival& a) { a.inputs[0].length = std::max(1, a.inputs[0].length - 1); },
};

// A small trace, on the way down from `trace`, for which `fails` still holds.
Trace Shrink(Trace trace, const std::function<bool(const Trace&)>& fails) {
  const auto try_change = [&](const std::function<void(Trace&)>& change) {
    Trace changed = trace;
    change(changed);
    if (ToString(changed) == ToString(trace) || !fails(changed)) return false;
    trace = std::move(changed);
    return true;
  };
  bool smaller = true;
  while (smaller) {
    smaller = false;
    for (size_t length = trace.arrivals.size(); length > 0; length /= 2) {
      for (size_t begin = 0; begin < trace.arrivals.size();) {
        const bool without = try_change([&](Trace& t) {
          const auto first = t.arrivals.begin() + static_cast<ptrdiff_t>(begin);
          const size_t left = t.arrivals.size() - begin;
          t.arrivals.erase(first, first + static_cast<ptrdiff_t>(std::min(length, left)));
        });
        smaller |= without;
        if (!without) begin += length;
      }
    }
    smaller |= try_change([](Trace& t) { t.failing.clear(); });
    smaller |= try_change([](Trace& t) { t.stop_at.reset(); });
    smaller |= try_change([](Trace& t) { t.options.prefix_cache = false; });
    for (size_t i = 0; i < trace.arrivals.size(); ++i) {
      for (const auto& simplify : kSimplifications) {
        smaller |= try_change([&](Trace& t) { simplify(t.arrivals[i]); });
      }
    }
  }
  return trace;
}

std::string FailureOf(const Trace& trace) {
  Outcomes outcomes;
  return TraceRun(trace, &outcomes).Run();
}

TEST(EnginePropertyTest, KeepsItsPromisesUnderRandomTraffic) {
  Outcomes outcomes;
  for (int seed = 1; seed <= kTraces; ++seed) {
    for (const int32_t steps_in_flight : {1, 2}) {
      Trace trace = RandomTrace(seed);
      trace.model.max_in_flight_steps = steps_in_flight;
      const std::string failure = TraceRun(trace, &outcomes).Run();
      if (failure.empty()) continue;
      const Trace small = Shrink(trace, [](const Trace& t) { return !FailureOf(t).empty(); });
      FAIL() << "trace " << seed << ": " << failure << "\nin small: " << FailureOf(small) << "\n"
             << ToString(small);
    }
  }
  // The promises were really put to the test.
  for (const char* outcome :
       {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "QUEUE_TIMEOUT", "SLOW_READER",
        "UNAVAILABLE", "refused: deadline past", "refused: TOO_LARGE", "refused: QUEUE_FULL",
        "refused: TOKENS_FULL", "refused: DEADLINE_INFEASIBLE", "preempted", "prefix hit", "paused",
        "steps that decode and prefill", "steps begun ahead"}) {
    EXPECT_GE(outcomes[outcome], 100) << outcome;
  }
  for (const auto& [outcome, count] : outcomes) std::cout << count << "\t" << outcome << "\n";
}

TEST(EnginePropertyTest, AFailingTraceIsMadeSmall) {
  // As if completions of prompts of 5 tokens and more were wrong when there are several.
  const auto fails = [](const Trace& trace) {
    return std::ranges::any_of(trace.arrivals, [](const Arrival& arrival) {
      return arrival.n > 1 && arrival.inputs[0].length >= 5;
    });
  };
  uint64_t seed = 1;
  while (!fails(RandomTrace(seed)) || RandomTrace(seed).arrivals.size() < 20) ++seed;
  const Trace small = Shrink(RandomTrace(seed), fails);
  ASSERT_EQ(small.arrivals.size(), 1u) << ToString(small);
  EXPECT_EQ(small.arrivals[0].inputs[0].length, 5);
  EXPECT_EQ(small.arrivals[0].max_tokens, 1);
  EXPECT_FALSE(small.arrivals[0].deadline_ms.has_value());
}

}  // namespace
}  // namespace ddl
