#include "server/rpc/model_service.h"

#include <algorithm>
#include <string>

#include "server/build_info.h"
#include "server/rpc/immediate_call.h"

namespace ddl {
namespace {

// Commit of the official repository whose outputs the tests compare such models with. Of what was
// before 2b55f25 there is no commit: that one's code computes the same.
std::string ParityReferenceCommit(Revision revision) {
  return std::string(RevisionName(std::max(revision, Revision::k2b55f25)));
}

v1::ModelState ToProto(ModelState state) {
  switch (state) {
    case ModelState::kLoading:
      return v1::MODEL_STATE_LOADING;
    case ModelState::kWarmingUp:
      return v1::MODEL_STATE_WARMING_UP;
    case ModelState::kReady:
      return v1::MODEL_STATE_READY;
    case ModelState::kFailed:
      return v1::MODEL_STATE_FAILED;
  }
  return v1::MODEL_STATE_UNSPECIFIED;
}

v1::ModelInfo ToProto(const ServedModel& model) {
  v1::ModelInfo info;
  info.set_name(model.name());
  info.set_state(ToProto(model.state()));
  info.set_state_message(model.state_message());
  const ReadyModel* ready = model.ready();
  if (ready == nullptr) return info;  // the rest is not known yet

  const ModelDescription& description = ready->engine->model();
  info.set_version(ready->identity.version);
  info.set_weights_sha256(ready->weights_sha256);
  info.set_variant(ready->variant);
  info.set_num_layers(static_cast<uint32_t>(description.num_layers));
  info.set_num_heads(static_cast<uint32_t>(description.num_heads));
  info.set_hidden_size(static_cast<uint32_t>(description.hidden_size));
  info.set_value_channels(static_cast<uint32_t>(description.value_channels));
  info.set_vocab_size(static_cast<uint32_t>(description.vocab_size));
  info.set_max_context_length(static_cast<uint32_t>(ready->limits.max_context_length));
  info.set_parameter_count(static_cast<uint64_t>(description.parameter_count));
  info.set_dtype(description.dtype);
  info.set_quantization(description.quantization);
  info.set_device(description.device);
  info.set_instruction_set(description.instruction_set);
  if (const Tokenizer* tokenizer = ready->tokenizer.get(); tokenizer != nullptr) {
    info.set_tokenizer(tokenizer->source());
    for (const TokenId id : tokenizer->prefix_token_ids()) {
      info.add_prefix_token_ids(static_cast<uint32_t>(id));
    }
    for (const TokenId id : tokenizer->suffix_token_ids()) {
      info.add_suffix_token_ids(static_cast<uint32_t>(id));
    }
  }
  for (const TokenId id : ready->eos_tokens.ids) {
    info.add_eos_token_ids(static_cast<uint32_t>(id));
  }
  info.set_eos_source(ready->eos_tokens.source);
  for (const char* task : {"generate", "embed", "score"}) info.add_tasks(task);
  for (const v1::Pooling pooling : {v1::POOLING_LAST_TOKEN, v1::POOLING_MEAN, v1::POOLING_MAX,
                                    v1::POOLING_WEIGHTED_MEAN, v1::POOLING_NONE}) {
    info.add_supported_pooling(pooling);
  }
  info.set_parity_reference_commit(ParityReferenceCommit(description.revision));
  info.set_checkpoint_revision(std::string(RevisionName(description.revision)));
  info.set_determinism(description.batch_dependence.empty() ? "batch_invariant" : "none");
  return info;
}

}  // namespace

ModelService::ModelService(const RpcContext& rpc, const ServerState& state)
    : rpc_(rpc), state_(state) {
  Serve("/ddl.v1.ModelService/ListModels", [this](grpc::CallbackServerContext* context) {
    return AnswerAtOnce<v1::ListModelsRequest>(
        rpc_, Method::kListModels, context,
        [this](const v1::ListModelsRequest&) -> absl::StatusOr<v1::ListModelsResponse> {
          v1::ListModelsResponse models;
          for (const auto& model : rpc_.models.all()) {
            *models.add_models() = ToProto(*model);
          }
          return models;
        });
  });
  Serve("/ddl.v1.ModelService/GetModelInfo", [this](grpc::CallbackServerContext* context) {
    return AnswerAtOnce<v1::GetModelInfoRequest>(
        rpc_, Method::kGetModelInfo, context,
        [this](const v1::GetModelInfoRequest& asked) -> absl::StatusOr<v1::ModelInfo> {
          const absl::StatusOr<ServedModel*> model = rpc_.models.Find(asked.model());
          if (!model.ok()) return model.status();
          return ToProto(**model);
        });
  });
  Serve("/ddl.v1.ModelService/GetServerInfo", [this](grpc::CallbackServerContext* context) {
    return AnswerAtOnce<v1::GetServerInfoRequest>(
        rpc_, Method::kGetServerInfo, context,
        [this](const v1::GetServerInfoRequest&) -> absl::StatusOr<v1::ServerInfo> {
          return Info();
        });
  });
}

v1::ServerInfo ModelService::Info() const {
  const BuildInfo build = GetBuildInfo();
  v1::ServerInfo info;
  info.set_version(std::string(build.version));
  info.set_git_commit(std::string(build.git_commit));
  info.set_libtorch_version(std::string(build.libtorch_version));
  info.set_cuda_version(std::string(build.cuda_version));
  info.set_uptime_seconds(absl::ToDoubleSeconds(absl::Now() - state_.started));
  info.set_ready(state_.ready);
  info.set_draining(state_.draining);

  // Of all models together.
  EngineLoad total;
  int64_t capacity = 0;
  absl::Duration longest_queue;
  for (const auto& served : rpc_.models.all()) {
    const ReadyModel* model = served->ready();
    if (model == nullptr) continue;
    const EngineLoad load = model->engine->load();
    const EngineOptions& options = model->engine->options();
    const ModelDescription& description = model->engine->model();
    info.set_requests_running(info.requests_running() + static_cast<uint32_t>(load.running()));
    info.set_requests_waiting(info.requests_waiting() + static_cast<uint32_t>(load.waiting()));
    info.set_max_running(info.max_running() + static_cast<uint32_t>(options.max_running_sequences));
    info.set_max_waiting(info.max_waiting() + static_cast<uint32_t>(options.max_waiting_requests));
    info.set_max_client_batch_size(static_cast<uint32_t>(model->limits.max_client_batch_size));
    info.set_max_batch_tokens(static_cast<uint32_t>(options.max_step_tokens));
    total.waiting_tokens += load.waiting_tokens;
    total.kv_blocks_used += load.kv_blocks_used;
    total.kv_blocks_free += load.kv_blocks_free + load.kv_blocks_cached;
    capacity += static_cast<int64_t>(description.kv_num_blocks) * description.kv_block_size;
    longest_queue = std::max(longest_queue, load.queue_delay);
  }
  info.set_waiting_tokens(static_cast<uint64_t>(total.waiting_tokens));
  const double blocks = total.kv_blocks_free + total.kv_blocks_used;
  info.set_kv_cache_usage_ratio(blocks > 0 ? total.kv_blocks_used / blocks : 0.0);
  info.set_kv_tokens_capacity(static_cast<uint64_t>(capacity));
  info.set_estimated_queue_seconds(absl::ToDoubleSeconds(longest_queue));
  return info;
}

}  // namespace ddl
