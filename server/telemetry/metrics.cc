#include "server/telemetry/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <iterator>
#include <map>
#include <string>
#include <utility>

#include "base/check.h"
#include "server/telemetry/process_stats.h"

namespace ddl {
namespace {

using ::prometheus::BuildCounter;
using ::prometheus::BuildGauge;
using ::prometheus::BuildHistogram;
using ::prometheus::Counter;
using ::prometheus::Family;
using ::prometheus::Gauge;
using ::prometheus::Histogram;
using ::prometheus::Labels;
using Buckets = Histogram::BucketBoundaries;

constexpr std::array<std::string_view, kNumMethods> kMethodNames = {
    "Generate",   "GenerateStream", "Embed",        "Score",        "Tokenize",
    "Detokenize", "ListModels",     "GetModelInfo", "GetServerInfo"};

constexpr std::array<std::string_view, kNumStatusCodes> kStatusCodeNames = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

// Seconds, for what takes a step or a few.
const Buckets& ShortSeconds() {
  static const auto* const buckets =
      new Buckets{.0001, .00025, .0005, .001, .002, .003, .005, .0075, .01, .015,
                  .02,   .03,    .05,   .075, .1,   .15,  .25,  .5,    1,   2.5};
  return *buckets;
}

// Seconds, for whole requests.
const Buckets& LongSeconds() {
  static const auto* const buckets =
      new Buckets{.001, .0025, .005, .01, .02, .04, .06, .08, .1, .15, .25, .5,
                  .75,  1,     2.5,  5,   7.5, 10,  20,  30,  60, 120, 300};
  return *buckets;
}

// 1, 2, 5, 10 ... up to `most` tokens.
Buckets TokenBuckets(int64_t most) {
  Buckets buckets;
  for (int64_t decade = 1; decade < most; decade *= 10) {
    for (const int64_t step : {1, 2, 5}) {
      if (decade * step < most) buckets.push_back(static_cast<double>(decade * step));
    }
  }
  buckets.push_back(static_cast<double>(most));
  return buckets;
}

// Powers of two to 1024.
Buckets BatchBuckets() {
  Buckets buckets;
  for (int size = 1; size <= 1024; size *= 2) buckets.push_back(size);
  return buckets;
}

// What beta of the delta rule can be, closest about identity 0, projection 1 and reflection 2.
const Buckets& GateBuckets() {
  static const auto* const buckets =
      new Buckets{.01, .05, .1, .25, .5, .75, .9, 1, 1.1, 1.25, 1.5, 1.75, 1.9, 1.95, 1.99, 2};
  return *buckets;
}

// |update| / |X|: at most 2 for a pure rewrite, more where v is large.
const Buckets& UpdateRatioBuckets() {
  static const auto* const buckets =
      new Buckets{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5, 10};
  return *buckets;
}

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

Family<Counter>& CounterFamily(prometheus::Registry& registry, const char* name, const char* help) {
  return BuildCounter().Name(name).Help(help).Register(registry);
}
Family<Gauge>& GaugeFamily(prometheus::Registry& registry, const char* name, const char* help) {
  return BuildGauge().Name(name).Help(help).Register(registry);
}
Family<Histogram>& HistogramFamily(prometheus::Registry& registry, const char* name,
                                   const char* help) {
  return BuildHistogram().Name(name).Help(help).Register(registry);
}

double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

}  // namespace

std::string_view MethodName(Method method) { return kMethodNames[static_cast<size_t>(method)]; }

std::string_view StatusCodeName(int code) {
  return code >= 0 && code < kNumStatusCodes ? kStatusCodeNames[code] : "UNKNOWN";
}

// Calls of one model name. A status code's series appears with its first call; that of OK is
// there from the start for the names served.
class Metrics::RpcMetrics {
 public:
  struct Families {
    Family<Counter>& requests;
    Family<Gauge>& in_flight;
    Family<Histogram>& duration;
    Family<Counter>& rejections;
    Family<Histogram>& embed_inputs;
  };

  RpcMetrics(const Families& families, std::string model, bool served)
      : families_(families), model_(std::move(model)) {
    if (!served) return;
    for (int method = 0; method < kNumMethods; ++method) {
      InFlight(method);
      Of(method, 0);
    }
    for (const char* reason : {"queue_full", "tokens_full", "deadline_infeasible", "too_large",
                               "draining", "loading", "rate_limited"}) {
      Rejections(reason);
    }
    EmbedInputs();
  }

  Gauge& InFlight(int method) {
    return Once(in_flight_[method], [&]() -> Gauge& {
      return families_.in_flight.Add({{"method", Text(kMethodNames[method])}, {"model", model_}});
    });
  }

  struct Answers {
    Counter& count;
    Histogram& duration;
  };
  Answers Of(int method, int code) {
    const auto labels = [&]() -> Labels {
      return {{"method", Text(kMethodNames[method])},
              {"code", Text(kStatusCodeNames[code])},
              {"model", model_}};
    };
    return {Once(requests_[method][code],
                 [&]() -> Counter& { return families_.requests.Add(labels()); }),
            Once(durations_[method][code],
                 [&]() -> Histogram& { return families_.duration.Add(labels(), LongSeconds()); })};
  }

  Counter& Rejections(std::string_view reason) {
    return families_.rejections.Add({{"reason", Text(reason)}, {"model", model_}});
  }

  Histogram& EmbedInputs() {
    return families_.embed_inputs.Add({{"model", model_}}, BatchBuckets());
  }

 private:
  static std::string Text(std::string_view text) { return std::string(text); }

  // The series in `slot`, made by `make` when first needed. Two threads may both make it:
  // Family::Add gives them the same one.
  template <typename Metric, typename Make>
  static Metric& Once(std::atomic<Metric*>& slot, const Make& make) {
    Metric* metric = slot.load(std::memory_order_acquire);
    if (metric == nullptr) {
      metric = &make();
      slot.store(metric, std::memory_order_release);
    }
    return *metric;
  }

  const Families families_;
  const std::string model_;
  std::array<std::atomic<Gauge*>, kNumMethods> in_flight_ = {};
  std::array<std::array<std::atomic<Counter*>, kNumStatusCodes>, kNumMethods> requests_ = {};
  std::array<std::array<std::atomic<Histogram*>, kNumStatusCodes>, kNumMethods> durations_ = {};
};

// One engine's series.
class Metrics::ModelMetrics final : public EngineObserver {
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
  void OnWastedTokens(std::string_view reason, int64_t tokens) override {
    Find(wasted_tokens_, reason).Increment(static_cast<double>(tokens));
  }
  void OnTimeToFirstToken(absl::Duration duration) override {
    time_to_first_token_.Observe(Seconds(duration));
  }
  void OnInterTokenLatency(absl::Duration duration) override {
    inter_token_latency_.Observe(Seconds(duration));
  }
  void OnPreemption() override { preemptions_.Increment(); }
  void OnNonfiniteLogits() override { nonfinite_logits_.Increment(); }
  void OnRejected(std::string_view reason) override { rpc_.Rejections(reason).Increment(); }

  void OnFinished(const FinishedRequest& request) override {
    const std::string_view task = TaskName(request.task);
    if (request.task == Task::kGenerate) {
      Find(generate_finished_, request.finish_reason).Increment();
    } else {
      Find(request.task == Task::kEmbed ? embed_finished_ : score_finished_, request.finish_reason)
          .Increment();
    }
    Find(generated_per_request_, task).Observe(static_cast<double>(request.generated_tokens));
    Find(prompt_per_request_, task).Observe(static_cast<double>(request.prompt_tokens));
    Find(queue_, task).Observe(Seconds(request.queue));
    Find(prefill_, task).Observe(Seconds(request.prefill));
    Find(decode_, task).Observe(Seconds(request.decode));
    if (request.finish_reason == "cancel" || request.finish_reason == "deadline") {
      Find(cancel_latency_, request.finish_reason).Observe(Seconds(request.cancel_latency));
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

  static constexpr char kFinishedName[] = "ddl_request_finished_total";
  static constexpr char kFinishedHelp[] = "Admitted requests that have ended, by how they ended.";
  static constexpr char kPromptName[] = "ddl_prompt_tokens_total";
  static constexpr char kPromptHelp[] =
      "Prompt tokens of requests, by where their state came from.";

  prometheus::Registry& registry_;
  RpcMetrics& rpc_;
  const std::string model_;
  const Buckets tokens_;
  const Buckets batch_ = BatchBuckets();

  Series<Counter, 8> generate_finished_ = NewCounters<8>(
      kFinishedName, kFinishedHelp, "finish_reason",
      {"stop", "eos", "length", "context", "cancel", "deadline", "slow_reader", "error"},
      {{"task", "generate"}});
  Series<Counter, 4> embed_finished_ =
      NewCounters<4>(kFinishedName, kFinishedHelp, "finish_reason",
                     {"stop", "cancel", "deadline", "error"}, {{"task", "embed"}});
  Series<Counter, 4> score_finished_ =
      NewCounters<4>(kFinishedName, kFinishedHelp, "finish_reason",
                     {"stop", "cancel", "deadline", "error"}, {{"task", "score"}});
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
      NewCounter("ddl_generated_tokens_total", "Tokens drawn from the model.");
  Series<Counter, 4> wasted_tokens_ = NewCounters<4>(
      "ddl_wasted_tokens_total",
      "Generated tokens of requests that did not end OK, and positions computed a second time.",
      "reason", {"cancel", "deadline", "error", "preempt_recompute"});
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
  Series<Histogram, 2> cancel_latency_ = NewHistograms<2>(
      "ddl_cancel_latency_seconds",
      "From seeing a cancellation or a passed deadline to having freed the request's blocks.",
      ShortSeconds(), "reason", {"cancel", "deadline"});
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
      "Time of a step in the model: its forward pass and the drawing of tokens.", ShortSeconds());
  Gauge& kv_usage_ = NewGauge("ddl_kv_cache_usage_ratio", "Part of the K/V blocks in use, 0 to 1.");
  Series<Gauge, 3> kv_blocks_ =
      NewGauges<3>("ddl_kv_blocks",
                   "Blocks of the K/V cache: held by sequences (used), by none but known to the "
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

// process_* as other Prometheus clients have them.
class Metrics::ProcessCollector final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    const std::optional<ProcessStats> stats = ReadProcessStats();
    if (!stats.has_value()) return {};
    return {
        One("process_cpu_seconds_total", "User and system CPU time spent.", stats->cpu_seconds,
            prometheus::MetricType::Counter),
        One("process_resident_memory_bytes", "Resident memory size.", stats->resident_bytes),
        One("process_virtual_memory_bytes", "Virtual memory size.", stats->virtual_bytes),
        One("process_open_fds", "Open file descriptors.", stats->open_fds),
        One("process_max_fds", "Most file descriptors that may be open.", stats->max_fds),
        One("process_start_time_seconds", "Unix time at which the process started.",
            stats->start_time_seconds),
    };
  }

 private:
  static prometheus::MetricFamily One(const char* name, const char* help, double value,
                                      prometheus::MetricType type = prometheus::MetricType::Gauge) {
    prometheus::MetricFamily family{name, help, type, {{}}};
    (type == prometheus::MetricType::Gauge ? family.metric[0].gauge.value
                                           : family.metric[0].counter.value) = value;
    return family;
  }
};

struct Metrics::Impl {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::shared_ptr<ProcessCollector> process = std::make_shared<ProcessCollector>();
  RpcMetrics::Families rpc_families = {
      CounterFamily(*registry, "ddl_requests_total", "Calls, by how they were answered."),
      GaugeFamily(*registry, "ddl_requests_in_flight", "Calls that have not been answered yet."),
      HistogramFamily(*registry, "ddl_request_duration_seconds",
                      "From a call's arrival to its answer."),
      CounterFamily(*registry, "ddl_admission_rejections_total",
                    "Requests refused before anything of them was computed."),
      HistogramFamily(*registry, "ddl_embed_inputs_per_request", "Inputs of an Embed."),
  };
  Family<Gauge>& load_duration = GaugeFamily(*registry, "ddl_model_load_duration_seconds",
                                             "How long the model took to load, by phase.");
  Family<Gauge>& device_memory =
      GaugeFamily(*registry, "ddl_device_memory_bytes", "Memory that the model takes, by purpose.");
  Family<Counter>& step_timeouts =
      CounterFamily(*registry, "ddl_step_timeouts_total",
                    "Steps that ran for longer than --step_timeout: the server was not ready "
                    "until they ended.");
  Gauge& ready = GaugeFamily(*registry, "ddl_server_ready", "1 while health says SERVING.").Add({});
  Gauge& draining =
      GaugeFamily(*registry, "ddl_server_draining", "1 after the signal to stop.").Add({});
  Family<Counter>& api_keys_reloads =
      CounterFamily(*registry, "ddl_api_keys_reloads_total",
                    "Changes of the file of keys: in force (ok), or bad and left out (failed).");
  Counter& api_keys_reloaded = api_keys_reloads.Add({{"result", "ok"}});
  Counter& api_keys_failed = api_keys_reloads.Add({{"result", "failed"}});
  Gauge& connections = GaugeFamily(*registry, "ddl_connections", "Connections that stand.").Add({});
  Family<Counter>& connections_refused =
      CounterFamily(*registry, "ddl_connections_refused_total",
                    "Connections closed because --max_connections stood (too_many), or far more "
                    "than --max_connection_rate came from one address (too_fast).");
  Counter& connections_too_many = connections_refused.Add({{"reason", "too_many"}});
  Counter& connections_too_fast = connections_refused.Add({{"reason", "too_fast"}});
  Counter& connections_delayed =
      CounterFamily(*registry, "ddl_connections_delayed_total",
                    "Connections held back because more than --max_connection_rate came from one "
                    "address.")
          .Add({});
  std::map<std::string, RpcMetrics, std::less<>> rpc;  // by model; constant after construction
  std::vector<std::unique_ptr<ModelMetrics>> models;

  RpcMetrics& Rpc(std::string_view model) {
    const auto found = rpc.find(model);
    DDL_CHECK(found != rpc.end(), "metrics of a model that is not served");
    return found->second;
  }
};

Metrics::Metrics(const BuildInfo& build, const std::vector<std::string>& models)
    : impl_(std::make_unique<Impl>()) {
  GaugeFamily(*impl_->registry, "ddl_build_info", "What the server was built from; always 1.")
      .Add({{"version", std::string(build.version)},
            {"git_commit", std::string(build.git_commit)},
            {"libtorch", std::string(build.libtorch_version)},
            {"grpc", build.grpc_version},
            {"cuda", std::string(build.cuda_version)}})
      .Set(1);
  for (const std::string& model : models) {
    impl_->rpc.try_emplace(model, impl_->rpc_families, model, /*served=*/true);
    impl_->step_timeouts.Add({{"model", model}});
  }
  impl_->rpc.try_emplace(std::string(kUnknownModel), impl_->rpc_families,
                         std::string(kUnknownModel), /*served=*/false);
}

Metrics::~Metrics() = default;

std::string Metrics::Text() const {
  std::vector<prometheus::MetricFamily> families = impl_->registry->Collect();
  std::vector<prometheus::MetricFamily> process = impl_->process->Collect();
  std::move(process.begin(), process.end(), std::back_inserter(families));
  return prometheus::TextSerializer().Serialize(families);
}

void Metrics::OnRpcStart(Method method, std::string_view model) {
  impl_->Rpc(model).InFlight(static_cast<int>(method)).Increment();
}

void Metrics::OnRpcEnd(Method method, std::string_view model, int code, absl::Duration duration) {
  RpcMetrics& rpc = impl_->Rpc(model);
  const RpcMetrics::Answers answers = rpc.Of(static_cast<int>(method), code);
  answers.count.Increment();
  answers.duration.Observe(Seconds(duration));
  rpc.InFlight(static_cast<int>(method)).Decrement();
}

void Metrics::OnEmbedInputs(std::string_view model, size_t inputs) {
  impl_->Rpc(model).EmbedInputs().Observe(static_cast<double>(inputs));
}

void Metrics::OnRejected(std::string_view model, std::string_view reason) {
  impl_->Rpc(model).Rejections(reason).Increment();
}

void Metrics::SetLoadDuration(std::string_view model, std::string_view phase,
                              absl::Duration duration) {
  impl_->load_duration.Add({{"model", std::string(model)}, {"phase", std::string(phase)}})
      .Set(Seconds(duration));
}

void Metrics::SetDeviceMemory(std::string_view model, std::string_view kind, int64_t bytes) {
  impl_->device_memory.Add({{"model", std::string(model)}, {"kind", std::string(kind)}})
      .Set(static_cast<double>(bytes));
}

void Metrics::OnStepTimeout(std::string_view model) {
  impl_->step_timeouts.Add({{"model", std::string(model)}}).Increment();
}

void Metrics::OnApiKeysReload(bool ok) {
  (ok ? impl_->api_keys_reloaded : impl_->api_keys_failed).Increment();
}
void Metrics::OnConnectionRefused(ConnectionRefusal refusal) {
  switch (refusal) {
    case ConnectionRefusal::kTooMany:
      return impl_->connections_too_many.Increment();
    case ConnectionRefusal::kTooFast:
      return impl_->connections_too_fast.Increment();
  }
}
void Metrics::OnConnectionDelayed() { impl_->connections_delayed.Increment(); }
void Metrics::SetConnections(int64_t connections) {
  impl_->connections.Set(static_cast<double>(connections));
}
void Metrics::SetReady(bool ready) { impl_->ready.Set(ready ? 1 : 0); }
void Metrics::SetDraining(bool draining) { impl_->draining.Set(draining ? 1 : 0); }

EngineObserver* Metrics::AddModel(const std::string& model, const ModelMetricsInfo& info) {
  impl_->models.push_back(
      std::make_unique<ModelMetrics>(*impl_->registry, impl_->Rpc(model), model, info));
  return impl_->models.back().get();
}

}  // namespace ddl
