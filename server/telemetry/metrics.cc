#include "server/telemetry/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "base/check.h"
#include "server/telemetry/metric_families.h"
#include "server/telemetry/model_metrics.h"
#include "server/telemetry/process_stats.h"
#include "server/telemetry/rpc_metrics.h"

namespace ddl {
namespace {

using ::prometheus::Counter;
using ::prometheus::Family;
using ::prometheus::Gauge;

}  // namespace

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
  std::vector<std::unique_ptr<EngineObserver>> models;

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

void Metrics::OnRejected(std::string_view model, RejectReason reason) {
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
  impl_->models.push_back(MakeModelMetrics(*impl_->registry, impl_->Rpc(model), model, info));
  return impl_->models.back().get();
}

}  // namespace ddl
