#include "server/models/model_start.h"

#include <spdlog/spdlog.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/build_info.h"
#include "server/engine/engine.h"

namespace ddl {
namespace {

// Letters of the weights' hash in a model's version.
constexpr size_t kVersionLength = 12;

std::string Fingerprint(const std::string& version, const ModelDescription& description) {
  return absl::StrCat(version, "-", std::string(GetBuildInfo().version), "-", description.dtype,
                      description.quantization == "int8" ? "-int8-" : "-",
                      description.instruction_set);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReadyModel>> WarmUpAndStart(const std::string& name,
                                                           LoadedModel loaded,
                                                           const ServerConfig& config,
                                                           EngineOptions options, Metrics* metrics,
                                                           std::function<absl::Time()> now) {
  metrics->SetLoadDuration(name, "read", loaded.read);
  metrics->SetLoadDuration(name, "pack", loaded.pack);

  auto ready = std::make_unique<ReadyModel>();
  const ModelDescription description = loaded.runner->description();
  const bool has_delta_rule = loaded.variant != "gpt";
  // The hash is a label of the metrics, which the engine needs.
  ready->weights_sha256 = loaded.weights_sha256.get();
  const absl::Time warming = absl::Now();
  EngineObserver* observer = metrics->AddModel(
      name, {.variant = loaded.variant,
             .dtype = description.dtype,
             .device = description.device,
             .instruction_set = description.instruction_set,
             .weights_sha256 = ready->weights_sha256,
             .max_context_length = loaded.max_context_length,
             .num_gated_sublayers = has_delta_rule ? 2 * description.num_layers : 0});
  options.max_context_length = loaded.max_context_length;
  options.eos_token_ids = loaded.eos_tokens.ids;
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Create(options, std::move(loaded.runner), loaded.tokenizer, observer, std::move(now));
  if (!engine.ok()) return engine.status();
  if (absl::Status status = (*engine)->WarmUp(); !status.ok()) return status;
  const absl::Duration warm_up = absl::Now() - warming;
  metrics->SetLoadDuration(name, "warmup", warm_up);
  if (warm_up > config.step_timeout) {
    spdlog::warn("the warm-up of model={} took {:.0f}s: --step_timeout={} is short for it", name,
                 absl::ToDoubleSeconds(warm_up), absl::FormatDuration(config.step_timeout));
  }
  metrics->SetDeviceMemory(name, "weights", loaded.weight_bytes);
  metrics->SetDeviceMemory(name, "kv", loaded.kv_bytes);
  metrics->SetDeviceMemory(name, "activations", description.activation_bytes);
  observer->OnLoad((*engine)->load());  // the cache's size, before anyone has been served
  (*engine)->Start();

  ready->variant = loaded.variant;
  ready->identity.name = name;
  ready->identity.version = ready->weights_sha256.substr(0, kVersionLength);
  ready->identity.system_fingerprint = Fingerprint(ready->identity.version, description);
  ready->tokenizer = loaded.tokenizer;
  ready->eos_tokens = loaded.eos_tokens;
  ready->limits = {.model = name,
                   .vocab_size = description.vocab_size,
                   .hidden_size = description.hidden_size,
                   .value_channels = description.value_channels,
                   .num_layers = description.num_layers,
                   .has_delta_rule = has_delta_rule,
                   .max_context_length = loaded.max_context_length,
                   .max_client_batch_size = config.max_client_batch_size,
                   .default_max_tokens = config.default_max_tokens,
                   .tokenizer = loaded.tokenizer.get()};
  ready->engine = *std::move(engine);
  return ready;
}

std::string Summary(const ReadyModel& model) {
  const ModelDescription& description = model.engine->model();
  const int64_t cached_tokens =
      static_cast<int64_t>(description.kv_num_blocks) * description.kv_block_size;
  return absl::StrCat(
      "model=", model.identity.name, " variant=", model.variant,
      " revision=", std::string(RevisionName(description.revision)), " dtype=", description.dtype,
      " device=", description.device, " instruction_set=", description.instruction_set,
      " parameters=", description.parameter_count, " context=", model.limits.max_context_length,
      " kv_cache_tokens=", cached_tokens,
      " tokenizer=", model.tokenizer == nullptr ? "none" : "yes",
      " weights_sha256=", model.weights_sha256);
}

}  // namespace ddl
