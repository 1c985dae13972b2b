#ifndef DDL_SERVER_MODELS_MODEL_START_H_
#define DDL_SERVER_MODELS_MODEL_START_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/config.h"
#include "server/engine/engine_options.h"
#include "server/models/model_loader.h"
#include "server/models/served_models.h"
#include "server/telemetry/metrics.h"

namespace ddl {

// An engine over a loaded model, warmed up and started, and what calls need to know of it. `name`:
// what clients call it. `options`: all but max_context_length, which is the model's. `metrics`
// outlive the engine, which reads the clock `now`. Fails as Engine::Create and WarmUp.
absl::StatusOr<std::unique_ptr<ReadyModel>> WarmUpAndStart(const std::string& name,
                                                           LoadedModel loaded,
                                                           const ServerConfig& config,
                                                           EngineOptions options, Metrics* metrics,
                                                           std::function<absl::Time()> now);

// A line for people and for scripts: words as key=value.
std::string Summary(const ReadyModel& model);

}  // namespace ddl

#endif  // DDL_SERVER_MODELS_MODEL_START_H_
