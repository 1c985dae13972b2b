#include "server/telemetry/model_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "server/telemetry/metric_families.h"

namespace ddl {
namespace {

using ::prometheus::Counter;
using ::prometheus::Gauge;
using ::prometheus::Histogram;
using ::prometheus::Labels;

constexpr std::array<std::string_view, kNumTasks> kTasks = {"generate", "embed", "score"};

std::string_view TaskName(Task task) { return kTasks[static_cast<size_t>(task)]; }

// The member of a small set of labelled series that `label` names.
template <typename Metric, size_t kSize>
Metric& Find(const std::array<std::pair<std::string_view, Metric*>, kSize>& series,
             std::string_view label) {
  for (const auto& [name, metric] : series) {
    if (name == label) return *metric;
  }
  DDL_CHECK(false, "a label that the metrics do not have");
}

// One engine's series.
class ModelMetrics final : public EngineObserver {
 public:
  ModelMetrics(prometheus::Registry& registry, RpcMetrics& rpc, const std::string& model,
               const ModelMetricsInfo& info)
      : registry_(registry),
        rpc_(rpc),
        model_(model),
        tokens_(TokenBuckets(info.max_context_length)) {
    for (int64_t sublayer = 0; sublayer < info.num_gated_sublayers; ++sublayer) {
      const Labels labels = {{"layer", std::to_string(sublayer / 2)},
                             {"sublayer", sublayer % 2 == 0 ? "attn" : "mlp"}};
      gates_.push_back(
          {&NewHistogram("ddl_beta_gate",
                         "Gates beta of the delta rule, of sampled steps: identity 0, projection "
                         "1, reflection 2.",
                         GateBuckets(), labels),
           &NewHistogram("ddl_state_update_ratio",
                         "Norm of what the delta rule added to the state, relative to the "
                         "state's, of sampled steps.",
                         UpdateRatioBuckets(), labels)});
    }
    GaugeFamily(registry, "ddl_model_info", "The model served; always 1.")
        .Add({{"model", model},
              {"variant", info.variant},
              {"dtype", info.dtype},
              {"device", info.device},
              {"instruction_set", info.instruction_set},
              {"weights_sha256", info.weights_sha256}})
        .Set(1);
  }

  void OnStep(const StepStats& step) override {
    const std::string_view phase = step.decode_tokens == 0    ? "prefill"
                                   : step.prefill_tokens == 0 ? "decode"
                                                              : "mixed";
    Find(step_duration_, phase).Observe(Seconds(step.duration));
    Find(step_tokens_, phase).Observe(step.prefill_tokens + step.decode_tokens);
    Find(step_batch_size_, phase).Observe(step.sequences);
    scheduler_duration_.Observe(Seconds(step.scheduler_duration));
    model_duration_.Observe(Seconds(step.model_duration));
    last_step_.SetToCurrentTime();
  }

  void OnLoad(const EngineLoad& load) override {
    for (int task = 0; task < kNumTasks; ++task) {
      running_[task].second->Set(load.tasks[task].running);
      waiting_[task].second->Set(load.tasks[task].waiting);
    }
    waiting_tokens_.Set(static_cast<double>(load.waiting_tokens));
    Find(paused_, "slow_reader").Set(load.paused_slow_reader);
    Find(paused_, "preempted").Set(load.paused_preempted);
    Find(kv_blocks_, "free").Set(load.kv_blocks_free);
    Find(kv_blocks_, "used").Set(load.kv_blocks_used);
    Find(kv_blocks_, "cached").Set(load.kv_blocks_cached);
    const double blocks = load.kv_blocks_free + load.kv_blocks_used + load.kv_blocks_cached;
    kv_usage_.Set(blocks > 0 ? load.kv_blocks_used / blocks : 0.0);
  }

  void OnPrefixCacheQuery(int64_t query_tokens, int64_t hit_tokens) override {
    prefix_cache_queries_.Increment(static_cast<double>(query_tokens));
    prefix_cache_hits_.Increment(static_cast<double>(hit_tokens));
  }
  void OnStreamStall() override { stream_stalls_.Increment(); }
  void OnGateSample(const GateSample& sample) override {
    const size_t sublayer = 2 * static_cast<size_t>(sample.layer) + (sample.mlp ? 1 : 0);
    DDL_CHECK(sublayer < gates_.size(), "a gate of a sublayer that the model does not have");
    for (const float beta : sample.beta) gates_[sublayer].beta->Observe(beta);
    for (const float ratio : sample.update_ratio) gates_[sublayer].update_ratio->Observe(ratio);
  }
  void OnPromptTokens(Task task, PromptSource source, int64_t tokens) override {
    Find(source == PromptSource::kCached ? cached_prompt_tokens_ : prompt_tokens_, TaskName(task))
        .Increment(static_cast<double>(tokens));
  }
  void OnGeneratedTokens(int64_t tokens) override {
    generated_tokens_.Increment(static_cast<double>(tokens));
  }
  void OnWastedTokens(WasteReason reason, int64_t tokens) override {
    wasted_tokens_[reason].Increment(static_cast<double>(tokens));
  }
  void OnTimeToFirstToken(absl::Duration duration) override {
    time_to_first_token_.Observe(Seconds(duration));
  }
  void OnInterTokenLatency(absl::Duration duration) override {
    inter_token_latency_.Observe(Seconds(duration));
  }
  void OnPreemption() override { preemptions_.Increment(); }
  void OnNonfiniteLogits() override { nonfinite_logits_.Increment(); }
  void OnRejected(RejectReason reason) override { rpc_.Rejections(reason).Increment(); }

  void OnFinished(const FinishedRequest& request) override {
    const std::string_view task = TaskName(request.task);
    finished_[static_cast<size_t>(request.task)][request.reason].Increment();
    Find(generated_per_request_, task).Observe(static_cast<double>(request.generated_tokens));
    Find(prompt_per_request_, task).Observe(static_cast<double>(request.prompt_tokens));
    Find(queue_, task).Observe(Seconds(request.queue));
    Find(prefill_, task).Observe(Seconds(request.prefill));
    Find(decode_, task).Observe(Seconds(request.decode));
    if (request.reason == EndReason::kCancel || request.reason == EndReason::kDeadline) {
      cancel_latency_[request.reason].Observe(Seconds(request.cancel_latency));
    }
  }

 private:
  template <typename Metric, size_t kSize>
  using Series = std::array<std::pair<std::string_view, Metric*>, kSize>;
  static constexpr std::array<std::string_view, 3> kPhases = {"prefill", "decode", "mixed"};

  Labels With(Labels labels) const {
    labels.insert({"model", model_});
    return labels;
  }
  Counter& NewCounter(const char* name, const char* help, Labels labels = {}) {
    return CounterFamily(registry_, name, help).Add(With(std::move(labels)));
  }
  Gauge& NewGauge(const char* name, const char* help, Labels labels = {}) {
    return GaugeFamily(registry_, name, help).Add(With(std::move(labels)));
  }
  Histogram& NewHistogram(const char* name, const char* help, const Buckets& buckets,
                          Labels labels = {}) {
    return HistogramFamily(registry_, name, help).Add(With(std::move(labels)), buckets);
  }
  template <size_t kSize>
  Series<Gauge, kSize> NewGauges(const char* name, const char* help, const char* key,
                                 const std::array<std::string_view, kSize>& values) {
    Series<Gauge, kSize> series;
    for (size_t i = 0; i < kSize; ++i) {
      series[i] = {values[i], &NewGauge(name, help, {{key, std::string(values[i])}})};
    }
    return series;
  }
  // One series for each of the values that the label `key` can have.
  template <size_t kSize>
  Series<Counter, kSize> NewCounters(const char* name, const char* help, const char* key,
                                     const std::array<std::string_view, kSize>& values,
                                     Labels labels = {}) {
    Series<Counter, kSize> series;
    for (size_t i = 0; i < kSize; ++i) {
      labels[key] = std::string(values[i]);
      series[i] = {values[i], &NewCounter(name, help, labels)};
    }
    return series;
  }
  template <size_t kSize>
  Series<Histogram, kSize> NewHistograms(const char* name, const char* help, const Buckets& buckets,
                                         const char* key,
                                         const std::array<std::string_view, kSize>& values) {
    Series<Histogram, kSize> series;
    for (size_t i = 0; i < kSize; ++i) {
      series[i] = {values[i], &NewHistogram(name, help, buckets, {{key, std::string(values[i])}})};
    }
    return series;
  }

  // One series for each of the keys that can happen.
  template <typename Key>
  SeriesBy<Counter, Key> NewCountersBy(const char* name, const char* help, const char* label,
                                       std::initializer_list<Key> keys, Labels labels = {}) {
    SeriesBy<Counter, Key> series;
    for (const Key key : keys) {
      labels[label] = std::string(ToString(key));
      series.Add(key, NewCounter(name, help, labels));
    }
    return series;
  }
  SeriesBy<Counter, EndReason> NewFinished(Task task, std::initializer_list<EndReason> reasons) {
    return NewCountersBy<EndReason>(
        "ddl_request_finished_total", "Admitted requests that have ended, by how they ended.",
        "finish_reason", reasons, {{"task", std::string(TaskName(task))}});
  }
  SeriesBy<Histogram, EndReason> NewCancelLatency() {
    SeriesBy<Histogram, EndReason> series;
    for (const EndReason reason : {EndReason::kCancel, EndReason::kDeadline}) {
      series.Add(reason, NewHistogram("ddl_cancel_latency_seconds",
                                      "From seeing a cancellation or a passed deadline to having "
                                      "freed the request's blocks.",
                                      ShortSeconds(), {{"reason", std::string(ToString(reason))}}));
    }
    return series;
  }

  static constexpr char kPromptName[] = "ddl_prompt_tokens_total";
  static constexpr char kPromptHelp[] =
      "Prompt tokens of requests, by where their state came from.";

  prometheus::Registry& registry_;
  RpcMetrics& rpc_;
  const std::string model_;
  const Buckets tokens_;
  const Buckets batch_ = BatchBuckets();

  // By task.
  std::array<SeriesBy<Counter, EndReason>, kNumTasks> finished_ = {
      NewFinished(Task::kGenerate, {EndReason::kStop, EndReason::kEos, EndReason::kLength,
                                    EndReason::kContext, EndReason::kCancel, EndReason::kDeadline,
                                    EndReason::kSlowReader, EndReason::kError}),
      NewFinished(Task::kEmbed,
                  {EndReason::kStop, EndReason::kCancel, EndReason::kDeadline, EndReason::kError}),
      NewFinished(Task::kScore,
                  {EndReason::kStop, EndReason::kCancel, EndReason::kDeadline, EndReason::kError})};
  Series<Gauge, kNumTasks> running_ = NewGauges(
      "ddl_requests_running", "Requests with at least one position computed.", "task", kTasks);
  Series<Gauge, kNumTasks> waiting_ =
      NewGauges("ddl_requests_waiting", "Requests that no step has computed anything of yet.",
                "task", kTasks);
  Gauge& waiting_tokens_ = NewGauge("ddl_waiting_tokens", "Prompt tokens of requests that wait.");
  Series<Gauge, 2> paused_ = NewGauges<2>(
      "ddl_sequences_paused",
      "Sequences that have left the batch for a while: their client does not read, or they have "
      "to be computed again.",
      "reason", {"slow_reader", "preempted"});
  Series<Counter, kNumTasks> prompt_tokens_ =
      NewCounters(kPromptName, kPromptHelp, "task", kTasks, {{"source", "computed"}});
  Series<Counter, kNumTasks> cached_prompt_tokens_ =
      NewCounters(kPromptName, kPromptHelp, "task", kTasks, {{"source", "cached"}});
  Counter& generated_tokens_ =
      NewCounter("ddl_generated_tokens_total", "Tokens sampled from the model.");
  SeriesBy<Counter, WasteReason> wasted_tokens_ = NewCountersBy<WasteReason>(
      "ddl_wasted_tokens_total",
      "Generated tokens of requests that did not end OK, and positions computed a second time.",
      "reason",
      {WasteReason::kCancel, WasteReason::kDeadline, WasteReason::kError,
       WasteReason::kPreemptRecompute});
  Histogram& time_to_first_token_ =
      NewHistogram("ddl_time_to_first_token_seconds",
                   "From a request's admission to its first token.", LongSeconds());
  Histogram& inter_token_latency_ =
      NewHistogram("ddl_inter_token_latency_seconds",
                   "Between one token of a completion and the next.", ShortSeconds());
  Series<Histogram, kNumTasks> queue_ =
      NewHistograms("ddl_request_queue_seconds",
                    "From a request's admission to the first step that computes any of it.",
                    LongSeconds(), "task", kTasks);
  Series<Histogram, kNumTasks> prefill_ =
      NewHistograms("ddl_request_prefill_seconds",
                    "From a request's first step to its first token or last embedding.",
                    LongSeconds(), "task", kTasks);
  Series<Histogram, kNumTasks> decode_ =
      NewHistograms("ddl_request_decode_seconds", "From a request's first token to its end.",
                    LongSeconds(), "task", kTasks);
  SeriesBy<Histogram, EndReason> cancel_latency_ = NewCancelLatency();
  Series<Histogram, kNumTasks> prompt_per_request_ = NewHistograms(
      "ddl_request_prompt_tokens", "Prompt tokens of ended requests.", tokens_, "task", kTasks);
  Series<Histogram, kNumTasks> generated_per_request_ =
      NewHistograms("ddl_request_generated_tokens", "Generated tokens of ended requests.", tokens_,
                    "task", kTasks);
  Series<Histogram, 3> step_duration_ =
      NewHistograms("ddl_step_duration_seconds", "Duration of a step, by what it computed.",
                    ShortSeconds(), "phase", kPhases);
  Series<Histogram, 3> step_tokens_ = NewHistograms(
      "ddl_step_tokens", "Positions that a step computed.", tokens_, "phase", kPhases);
  Series<Histogram, 3> step_batch_size_ = NewHistograms(
      "ddl_step_batch_size", "Sequences that a step computed.", batch_, "phase", kPhases);
  Histogram& scheduler_duration_ = NewHistogram(
      "ddl_scheduler_duration_seconds", "Time to decide what a step computes.", ShortSeconds());
  Histogram& model_duration_ = NewHistogram(
      "ddl_model_duration_seconds",
      "Time of a step in the model: its forward pass and the sampling of tokens.", ShortSeconds());
  Gauge& kv_usage_ = NewGauge("ddl_kv_cache_usage_ratio", "Part of the K/V blocks in use, 0 to 1.");
  Series<Gauge, 3> kv_blocks_ =
      NewGauges<3>("ddl_kv_blocks",
                   "Blocks of the K/V cache: held by sequences (used), by none but kept in the "
                   "prefix cache (cached), or empty (free).",
                   "state", {"free", "used", "cached"});
  Counter& prefix_cache_queries_ =
      NewCounter("ddl_prefix_cache_query_tokens_total",
                 "Prompt tokens that were looked up in the prefix cache.");
  Counter& prefix_cache_hits_ =
      NewCounter("ddl_prefix_cache_hit_tokens_total", "Prompt tokens that the prefix cache had.");
  Counter& preemptions_ = NewCounter(
      "ddl_preemptions_total", "Sequences that lost their blocks and were computed again later.");
  Counter& stream_stalls_ =
      NewCounter("ddl_stream_stalls_total", "Requests paused because their client did not read.");
  Counter& nonfinite_logits_ =
      NewCounter("ddl_nonfinite_logits_total", "Sequences that failed with non-finite logits.");
  Gauge& last_step_ = NewGauge("ddl_engine_last_step_timestamp_seconds",
                               "Unix time at which the last step ended; 0 before the first.");
  struct GateSeries {
    Histogram* beta;
    Histogram* update_ratio;
  };
  std::vector<GateSeries> gates_;  // by sublayer: attention and MLP of layer 0, of layer 1 ...
};

}  // namespace

std::unique_ptr<EngineObserver> MakeModelMetrics(prometheus::Registry& registry, RpcMetrics& rpc,
                                                 const std::string& model,
                                                 const ModelMetricsInfo& info) {
  return std::make_unique<ModelMetrics>(registry, rpc, model, info);
}

}  // namespace ddl
