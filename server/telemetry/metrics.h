#ifndef DDL_SERVER_TELEMETRY_METRICS_H_
#define DDL_SERVER_TELEMETRY_METRICS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/build_info.h"
#include "server/engine/observer.h"
#include "server/net/connection_acceptor.h"
#include "server/telemetry/rpc_labels.h"

namespace ddl {

// What a model's metrics need to know of it.
struct ModelMetricsInfo {
  std::string variant;
  std::string dtype;
  std::string device;
  std::string instruction_set;  // as in ModelDescription
  std::string weights_sha256;
  int64_t max_context_length = 0;   // tokens; upper end of the token histograms
  int64_t num_gated_sublayers = 0;  // with a delta rule: 2 * num_layers, or 0
};

// All metrics of the process and the HTTP page that shows them. Names, types and labels are
// listed in docs/metrics.md. Thread-safe; the series that can move are there from the start.
class Metrics {
 public:
  // `models`: the names served.
  Metrics(const BuildInfo& build, const std::vector<std::string>& models);
  ~Metrics();

  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // The page /metrics: Prometheus's text format.
  std::string Text() const;

  // A call has arrived. `model` is a served name or kUnknownModel.
  void OnRpcStart(Method method, std::string_view model);
  // It has been answered with gRPC's `code`. Once per OnRpcStart, with the same arguments.
  void OnRpcEnd(Method method, std::string_view model, int code, absl::Duration duration);
  // An Embed with this many inputs is about to be submitted.
  void OnEmbedInputs(std::string_view model, size_t inputs);
  // A call was refused before it reached an engine: kLoading, kDraining, kRateLimited.
  void OnRejected(std::string_view model, RejectReason reason);

  // phase: "read", "pack", "warmup".
  void SetLoadDuration(std::string_view model, std::string_view phase, absl::Duration duration);
  // kind: "weights", "kv", "activations".
  void SetDeviceMemory(std::string_view model, std::string_view kind, int64_t bytes);
  // A step of the model has been running for longer than --step_timeout. Once per step.
  void OnStepTimeout(std::string_view model);
  // The file of keys has changed, and its content is now in force, or cannot be.
  void OnApiKeysReload(bool ok);
  // A connection was closed as soon as it had come.
  void OnConnectionRefused(ConnectionRefusal refusal);
  // A connection waits because too many have come from its address.
  void OnConnectionDelayed();
  void SetConnections(int64_t connections);
  void SetReady(bool ready);
  void SetDraining(bool draining);

  // Adds the series that a loaded model moves. `model` is one of the names served, once each.
  // The observer lives as long as this.
  EngineObserver* AddModel(const std::string& model, const ModelMetricsInfo& info);

 private:
  class ProcessCollector;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ddl

#endif  // DDL_SERVER_TELEMETRY_METRICS_H_
