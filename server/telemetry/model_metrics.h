#ifndef DDL_SERVER_TELEMETRY_MODEL_METRICS_H_
#define DDL_SERVER_TELEMETRY_MODEL_METRICS_H_

#include <prometheus/registry.h>

#include <memory>
#include <string>

#include "server/engine/observer.h"
#include "server/telemetry/metrics.h"
#include "server/telemetry/rpc_metrics.h"

namespace ddl {

// The series that one engine moves: its observer. `registry` and `rpc` outlive it.
std::unique_ptr<EngineObserver> MakeModelMetrics(prometheus::Registry& registry, RpcMetrics& rpc,
                                                 const std::string& model,
                                                 const ModelMetricsInfo& info);

}  // namespace ddl

#endif  // DDL_SERVER_TELEMETRY_MODEL_METRICS_H_
