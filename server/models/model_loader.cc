#include "server/models/model_loader.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/process_limits.h"
#include "model/checkpoint/checkpoint.h"
#include "server/engine/scheduler.h"
#include "server/models/kv_cache_size.h"

namespace ddl {
namespace {

// Appended to what is wrong with a tokenizer.
constexpr char kMeanwhile[] =
    ". To serve the model with token ids meanwhile, start with --tokenizer=none";

// Null when the folder has none, or it is not wanted.
absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadTokenizer(const Checkpoint& checkpoint,
                                                               const ServerConfig& config) {
  if (config.tokenizer == TokenizerChoice::kNone) return nullptr;
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(checkpoint.folder());
  if (absl::IsNotFound(tokenizer.status())) {
    spdlog::warn("no tokenizer in {}: serving token ids only", checkpoint.folder().string());
    return nullptr;
  }
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        absl::StrCat(tokenizer.status().message(), kMeanwhile));
  }
  if ((*tokenizer)->vocab_size() > checkpoint.config().vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.folder().string(), ": the tokenizer has ids up to ",
                     (*tokenizer)->vocab_size() - 1, ", but vocab_size in config.json is ",
                     checkpoint.config().vocab_size, kMeanwhile));
  }
  return std::shared_ptr<const Tokenizer>(*std::move(tokenizer));
}

std::string Listed(const std::vector<TokenId>& ids) {
  return ids.empty() ? "none" : absl::StrJoin(ids, ",");
}

// Which files won.
void LogTokens(const LoadedModel& loaded) {
  std::string line = "tokenizer=none";
  if (const Tokenizer* tokenizer = loaded.tokenizer.get(); tokenizer != nullptr) {
    line = absl::StrCat("tokenizer=", tokenizer->source(),
                        " prefix_token_ids=", Listed(tokenizer->prefix_token_ids()),
                        " suffix_token_ids=", Listed(tokenizer->suffix_token_ids()));
  }
  const EosTokens& eos = loaded.eos_tokens;
  absl::StrAppend(&line, " eos_token_ids=", Listed(eos.ids), " eos_source=", eos.source);
  if (!eos.unused.empty()) absl::StrAppend(&line, ", not used: ", absl::StrJoin(eos.unused, "; "));
  spdlog::info("{}", line);
}

RunnerDType ChooseDType(const Checkpoint& checkpoint, const ServerConfig& config) {
  if (config.dtype.has_value()) return *config.dtype;
  return checkpoint.stored_type() == StoredType::kBFloat16 ? RunnerDType::kBFloat16
                                                           : RunnerDType::kFloat32;
}

// Of the large weights, which are nearly all of them.
int64_t BytesPerWeight(const RunnerOptions& options) {
  if (options.quantization == Quantization::kInt8) return 1;
  return options.dtype == RunnerDType::kFloat32 ? 4 : 2;
}

// Blocks of the K/V cache.
absl::StatusOr<int32_t> ChooseKvBlocks(int64_t bytes_per_token, int64_t context,
                                       std::optional<int64_t> available_bytes,
                                       const ServerConfig& config) {
  const int64_t block_tokens = config.kv_block_size;
  const int64_t context_blocks = (context + block_tokens - 1) / block_tokens;
  const int64_t bytes =
      config.kv_cache_bytes.has_value()
          ? *config.kv_cache_bytes
          : AutomaticKvCacheBytes(bytes_per_token, config.engine.max_running_sequences,
                                  context_blocks * block_tokens, available_bytes,
                                  static_cast<int64_t>(config.models.size()));
  const int64_t blocks = std::min<int64_t>(bytes / (bytes_per_token * block_tokens),
                                           std::numeric_limits<int32_t>::max());
  if (blocks < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv_cache_memory: ", bytes, " bytes hold no block of ", block_tokens,
                     " tokens, which takes ", bytes_per_token * block_tokens));
  }
  return static_cast<int32_t>(blocks);
}

void WarnOfShortCache(int64_t blocks, int64_t context, const ServerConfig& config) {
  const int64_t tokens = blocks * config.kv_block_size;
  if (tokens >= context) return;
  spdlog::warn(
      "the K/V cache holds {} tokens, less than one context of {}: longer requests will be "
      "refused (--kv_cache_memory)",
      tokens, context);
}

RunnerDevice ChooseDevice(const ServerConfig& config) {
  if (config.device.has_value()) return *config.device;
  return CheckDevice(RunnerDevice::kCuda).ok() ? RunnerDevice::kCuda : RunnerDevice::kCpu;
}

// What part of the GPU's memory may be in use once this model has its cache: models are loaded one
// after the other, and each may take as much.
double MemoryFraction(const ModelSource& source, const ServerConfig& config) {
  const auto model = std::find_if(config.models.begin(), config.models.end(),
                                  [&](const ModelSource& m) { return m.name == source.name; });
  return config.gpu_memory_fraction * static_cast<double>(model - config.models.begin() + 1) /
         static_cast<double>(config.models.size());
}

}  // namespace

absl::StatusOr<LoadedModel> LoadModel(const ModelSource& source, const ServerConfig& config,
                                      const std::atomic<bool>& abandoned) {
  LoadedModel loaded;
  const absl::Time start = absl::Now();
  RunnerOptions options;
  options.device = ChooseDevice(config);  // first: LibTorch's CUDA part comes before its other uses
  absl::StatusOr<Checkpoint> opened = Checkpoint::Open(source.folder);
  if (!opened.ok()) return opened.status();
  const auto checkpoint = std::make_shared<const Checkpoint>(*std::move(opened));
  loaded.weights_sha256 =
      std::async(std::launch::async, [checkpoint] { return checkpoint->WeightsSha256(); });
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = LoadTokenizer(*checkpoint, config);
  if (!tokenizer.ok()) return tokenizer.status();
  loaded.tokenizer = *std::move(tokenizer);
  absl::StatusOr<EosTokens> eos_tokens =
      ReadEosTokens(checkpoint->folder(), loaded.tokenizer.get(),
                    static_cast<TokenId>(checkpoint->config().vocab_size));
  if (!eos_tokens.ok()) return eos_tokens.status();
  loaded.eos_tokens = *std::move(eos_tokens);
  LogTokens(loaded);
  loaded.read = absl::Now() - start;
  if (abandoned) return absl::CancelledError("the server was stopped");

  const ModelConfig& model = checkpoint->config();
  if (model.ddl_state_dv_shortconv_causal && !config.obey_dv_shortconv_causal &&
      checkpoint->revision() == Revision::k2b55f25) {
    spdlog::warn(
        "config.json asks for ddl_state_dv_shortconv_causal, which the official eager code of "
        "2b55f25 ignores and so does this server; --obey_dv_shortconv_causal obeys it");
  }
  loaded.max_context_length = config.engine.max_context_length > 0
                                  ? config.engine.max_context_length
                                  : static_cast<int32_t>(model.block_size);
  if (loaded.max_context_length > model.block_size) {
    spdlog::warn("--max_context_length={} is more than the {} tokens the model was trained for",
                 loaded.max_context_length, model.block_size);
  }

  options.gpu_memory_fraction = MemoryFraction(source, config);
  options.batch_invariant = config.deterministic;
  options.capture_graphs = true;
  options.dtype = ChooseDType(*checkpoint, config);
  options.quantization = config.quantization;
  options.kv_block_size = config.kv_block_size;
  options.max_sequences = SlotsFor(config.engine.max_running_sequences);
  options.max_step_tokens = config.engine.max_step_tokens;
  options.max_context_length = loaded.max_context_length;
  options.instruction_set = config.instruction_set;
  options.num_threads = config.num_threads;
  options.obey_dv_shortconv_causal = config.obey_dv_shortconv_causal;
  const int64_t bytes_per_token =
      KvBytesPerToken(*checkpoint, options.dtype, options.kv_block_size);
  if (options.device == RunnerDevice::kCpu || config.kv_cache_bytes.has_value()) {
    absl::StatusOr<int32_t> blocks = ChooseKvBlocks(bytes_per_token, loaded.max_context_length,
                                                    ReadProcessLimits().available_memory, config);
    if (!blocks.ok()) return blocks.status();
    options.kv_num_blocks = *blocks;
  }  // else the runner sees what the GPU's memory leaves

  const absl::Time packing = absl::Now();
  absl::StatusOr<std::unique_ptr<ModelRunner>> runner = ModelRunner::Create(checkpoint, options);
  if (!runner.ok()) return runner.status();
  loaded.runner = *std::move(runner);
  loaded.variant = VariantName(checkpoint->variant());
  loaded.pack = absl::Now() - packing;
  loaded.weight_bytes = checkpoint->parameter_count() * BytesPerWeight(options);
  const ModelDescription& description = loaded.runner->description();
  loaded.kv_bytes = description.kv_num_blocks * bytes_per_token * options.kv_block_size;
  WarnOfShortCache(description.kv_num_blocks, loaded.max_context_length, config);
  spdlog::info(
      "loaded variant={} revision={} dtype={} quantization={} device={} instruction_set={} "
      "threads={} context={} kv_cache={} blocks of {} tokens, {} MiB",
      loaded.variant, RevisionName(description.revision), description.dtype,
      description.quantization, description.device, description.instruction_set,
      description.num_threads, loaded.max_context_length, description.kv_num_blocks,
      options.kv_block_size, loaded.kv_bytes >> 20);
  if (!description.batch_dependence.empty()) {
    spdlog::warn("answers may depend on what else is served, in their last bits: {}",
                 description.batch_dependence);
  }
  return loaded;
}

}  // namespace ddl
