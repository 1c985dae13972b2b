#include "model/model_runner.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/process_limits.h"
#include "base/thread_pool.h"
#include "model/checkpoint/checkpoint.h"
#include "model/ddl_model.h"
#include "model/device/device.h"
#include "model/packed_step.h"
#include "model/step_outputs.h"
#include "model/token.h"

namespace ddl {
namespace {

absl::Status TensorLibraryError(absl::string_view doing, const std::exception& error) {
  return absl::InternalError(absl::StrCat(doing, " failed in the tensor library: ", error.what()));
}

// For the step that FillMemory tries, where it is to choose the number.
RunnerOptions WithOneBlockAtLeast(RunnerOptions options) {
  options.kv_num_blocks = std::max(options.kv_num_blocks, 1);
  return options;
}

// Where each of `chunks` stands in `sampled`, ascending.
std::vector<int32_t> PlacesOf(absl::Span<const int32_t> chunks, absl::Span<const int32_t> sampled) {
  std::vector<int32_t> places;
  for (const int32_t chunk : chunks) {
    const auto found = std::lower_bound(sampled.begin(), sampled.end(), chunk);
    DDL_CHECK(found != sampled.end() && *found == chunk,
              "last_token_from a chunk that samples no token");
    places.push_back(static_cast<int32_t>(found - sampled.begin()));
  }
  return places;
}

class DdlModelRunner final : public ModelRunner {
 public:
  DdlModelRunner(const std::shared_ptr<const Checkpoint>& checkpoint, const RunnerOptions& options,
                 std::unique_ptr<ThreadPool> threads, std::unique_ptr<const Device> device)
      : options_(WithOneBlockAtLeast(options)),
        threads_(std::move(threads)),
        device_(std::move(device)),
        model_(checkpoint, options_, device_.get()) {
    const ModelConfig& config = checkpoint->config();
    description_.variant = checkpoint->variant();
    description_.revision = checkpoint->revision();
    description_.dtype = options.dtype == RunnerDType::kFloat32 ? "float32" : "bfloat16";
    description_.quantization = options.quantization == Quantization::kInt8 ? "int8" : "none";
    description_.device = device_->name();
    description_.instruction_set = kernels::Name(device_->host_kernels().instruction_set());
    description_.num_threads = threads_->num_threads();
    description_.num_layers = config.num_hidden_layers;
    description_.num_heads = config.num_attention_heads;
    description_.hidden_size = config.hidden_size;
    description_.value_channels = checkpoint->value_channels();
    description_.vocab_size = config.vocab_size;
    description_.block_size = config.block_size;
    description_.parameter_count = checkpoint->parameter_count();
    description_.kv_bytes_per_token =
        KvBytesPerToken(*checkpoint, options.dtype, options.kv_block_size);
    description_.kv_block_size = options.kv_block_size;
    description_.kv_num_blocks = options_.kv_num_blocks;
    description_.max_sequences = options.max_sequences;
    description_.max_in_flight_steps = device_->is_async() ? 2 : 1;
    description_.batch_dependence = model_.FindBatchDependence();
    description_.activation_bytes = model_.activation_bytes();
    description_.first_steps_are_slow = device_->is_async();
  }

  const ModelDescription& description() const override { return description_; }
  int64_t graph_replays() const override { return model_.graph_replays(); }

  void Begin(absl::Span<const SequenceChunk> chunks) override {
    DDL_CHECK(static_cast<int32_t>(steps_.size()) < description_.max_in_flight_steps,
              "more than max_in_flight_steps");
    const InFlightStep* const previous = steps_.empty() ? nullptr : &steps_.back();
    InFlightStep& step = steps_.emplace_back();
    step.chunks.assign(chunks.begin(), chunks.end());
    if (previous != nullptr) {
      DDL_CHECK(std::none_of(previous->chunks.begin(), previous->chunks.end(), NeedsHost),
                "a step begun while one that NeedsHost is in flight");
      step.status = previous->status;  // it has sampled nothing to go on from
      if (!step.status.ok()) return;
      step.previous_samples = previous->outputs->samples();
    }
    if (device_->is_async() && !StepOutputs::ReadsDuringLayers(chunks, model_)) {
      step.status = Try([&] { Launch(step); });
    }
  }

  absl::StatusOr<std::vector<ChunkOutput>> Finish() override {
    DDL_CHECK(!steps_.empty(), "a step is finished that was not begun");
    InFlightStep& step = steps_.front();
    std::vector<ChunkOutput> outputs;
    if (step.status.ok()) {
      step.status = Try([&] {
        if (!step.packed.has_value()) Launch(step);
        outputs = Complete(step);
      });
    }
    const absl::Status status = std::move(step.status);
    steps_.pop_front();
    if (!status.ok()) return status;
    return outputs;
  }

  // Makes the caches as large as what the weights and the largest step leave of the device's memory
  // up to gpu_memory_fraction. Runs such a step, so that what it takes is counted.
  absl::Status FillMemory() {
    device_->ReleaseUnusedMemory();  // what loading took
    Run(LargestStep(options_.max_step_tokens).chunks);
    Run(LargestStep(std::min(options_.max_sequences, options_.max_step_tokens)).chunks);  // decodes
    const DeviceMemory memory = device_->memory().value();
    const auto limit = static_cast<int64_t>(options_.gpu_memory_fraction *
                                            static_cast<double>(memory.total_bytes));
    const int64_t used = memory.total_bytes - memory.free_bytes;
    const int64_t block_bytes = description_.kv_bytes_per_token * options_.kv_block_size;
    const int64_t blocks =
        std::min<int64_t>((limit - used) / block_bytes, std::numeric_limits<int32_t>::max() / 2);
    if (limit < used || blocks < 1) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory is left on ", device_->name(), " for the K/V cache: of ",
                       memory.total_bytes >> 20, " MiB, ", used >> 20,
                       " MiB are in use with the model loaded, and --gpu_memory_fraction=",
                       options_.gpu_memory_fraction, " allows ", limit >> 20, " MiB"));
    }
    options_.kv_num_blocks = static_cast<int32_t>(blocks);
    description_.kv_num_blocks = options_.kv_num_blocks;
    model_.MakeCaches(options_.kv_num_blocks);
    return absl::OkStatus();
  }

  // Runs a decode of each size that has a graph of its own, 1, 2, 4 ... rows, of sequences of one
  // position, all in block 0: what they compute has no meaning.
  void CaptureGraphs() {
    const int32_t most = std::min(options_.max_sequences, options_.max_step_tokens);
    const std::vector<TokenId> tokens(1);
    const std::vector<int32_t> block_table(1);
    std::vector<SequenceChunk> chunks(most);
    for (int32_t slot = 0; slot < most; ++slot) {
      chunks[slot].tokens = tokens;
      chunks[slot].block_table = block_table;
      chunks[slot].slot = slot;
    }
    for (int32_t rows = 1; rows < most; rows *= 2) Run(absl::MakeConstSpan(chunks).first(rows));
    Run(chunks);
  }

 private:
  // A step of so many positions at the end of the context, from which as many tokens are sampled as
  // can be, most of them of few sequences. Every position is in block 0: what it computes has no
  // meaning.
  struct Step {
    std::vector<TokenId> tokens;
    std::vector<int32_t> block_table;
    std::vector<SequenceChunk> chunks;
  };
  Step LargestStep(int32_t positions) const {
    const auto context = static_cast<int32_t>(model_.max_context_length());
    Step step;
    step.tokens.resize(context);
    step.block_table.resize((context + options_.kv_block_size - 1) / options_.kv_block_size);
    int32_t left = positions;
    for (int32_t slot = 0; slot < options_.max_sequences && left > 0; ++slot) {
      // One for each slot to come.
      const int32_t share = std::clamp(left - (options_.max_sequences - slot - 1), 1, context);
      SequenceChunk& chunk = step.chunks.emplace_back();
      chunk.tokens = step.tokens;
      chunk.start = context - share;
      chunk.block_table = step.block_table;
      chunk.slot = slot;
      chunk.sample.emplace().vocab_size = static_cast<TokenId>(description_.vocab_size);
      left -= share;
    }
    return step;
  }

  // From Begin to Finish.
  struct InFlightStep {
    std::vector<SequenceChunk> chunks;
    absl::Status status;
    // Of the step that was in flight when this one was begun; null: none, or it samples nothing.
    std::shared_ptr<const DeviceSamples> previous_samples;
    // By Launch.
    std::optional<PackedStep> packed;
    std::optional<StepOutputs> outputs;
    std::unique_ptr<Event> end;  // of a step without samples, whose arrival says the same
  };

  template <typename Function>
  absl::Status Try(const Function& function) const {
    try {
      const c10::InferenceMode inference_mode;
      function();
      return absl::OkStatus();
    } catch (const std::exception& error) {
      if (absl::Status health = device_->Health(); !health.ok()) {
        return absl::UnavailableError(
            absl::StrCat(device_->name(), " failed and is lost: ", health.message()));
      }
      return TensorLibraryError("the forward pass", error);
    }
  }

  void Run(absl::Span<const SequenceChunk> chunks) {
    InFlightStep step;
    step.chunks.assign(chunks.begin(), chunks.end());
    Launch(step);
    Complete(step);
  }

  // Has the device compute the layers and sample what it can. Where it is asynchronous nothing
  // waits, but for what ReadsDuringLayers.
  void Launch(InFlightStep& step) {
    step.packed.emplace(step.chunks, Packing());
    const kernels::Batch batch = step.packed->batch();
    DDL_CHECK(batch.tokens <= options_.max_step_tokens, "a step larger than max_step_tokens");
    StepOutputs& outputs =
        step.outputs.emplace(step.chunks, batch, &model_, device_.get(), threads_.get());
    StepIds ids{.ids = step.packed->ids(), .from = {}, .to = step.packed->pending()};
    std::vector<int32_t> from;
    if (!ids.to.empty()) {
      DDL_CHECK(step.previous_samples != nullptr, "last_token_from, but no step samples tokens");
      ids.pending = step.previous_samples->tokens.get();
      from = PlacesOf(step.packed->pending_from(), step.previous_samples->chunks);
      ids.from = from;
    }
    outputs.Launched(model_.Forward(batch, ids, outputs.HiddenRows(), outputs.MakeStateObserver(),
                                    outputs.stats()));
    if (outputs.samples() == nullptr) step.end = device_->RecordEvent();
  }

  // What the host does once a step has run.
  static std::vector<ChunkOutput> Complete(InFlightStep& step) {
    if (step.end != nullptr) step.end->Wait();
    return step.outputs->Collect();
  }

  PackingOptions Packing() const {
    return {.input_taps = model_.input_taps(),
            .max_context_length = model_.max_context_length(),
            .kv_block_size = options_.kv_block_size,
            .kv_num_blocks = options_.kv_num_blocks,
            .max_sequences = options_.max_sequences,
            .has_tails = model_.has_tails()};
  }

  RunnerOptions options_;  // kv_num_blocks as allocated
  const std::unique_ptr<ThreadPool> threads_;
  const std::unique_ptr<const Device> device_;
  DdlModel model_;
  ModelDescription description_;
  std::deque<InFlightStep> steps_;  // in the order of Begin
};

// Threads worth waking for a model, when nobody says: one for every 16 M parameters. For less work
// the meeting of the threads after each product takes longer than the product, and on a busy
// machine, where one of them may not be running, a hundred times as long.
int DefaultThreads(int64_t parameter_count) {
  constexpr int64_t kParametersPerThread = 16'000'000;
  // LibTorch's own choice, before anyone has set it: one for each core, or as OMP_NUM_THREADS says.
  static const int cores = at::get_num_threads();
  const int available = std::min(cores, ReadProcessLimits().Processors());
  const int64_t useful = std::max<int64_t>(1, parameter_count / kParametersPerThread);
  return static_cast<int>(std::min<int64_t>(available, useful));
}

// How long threads without work spin: with fewer processors than threads they would take what the
// others need, and under a quota everybody's.
std::chrono::nanoseconds SpinOf(int num_threads) {
  return num_threads <= ReadProcessLimits().Processors() ? ThreadPool::kDefaultSpin
                                                         : std::chrono::nanoseconds::zero();
}

absl::Status CheckOptions(const Checkpoint& checkpoint, const RunnerOptions& options) {
  const int32_t least_blocks = options.device == RunnerDevice::kCuda ? 0 : 1;
  if (options.kv_block_size < 1 || options.kv_num_blocks < least_blocks ||
      options.max_sequences < 1 || options.max_step_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_block_size, kv_num_blocks, max_sequences and max_step_tokens must be at "
                     "least 1, found ",
                     options.kv_block_size, ", ", options.kv_num_blocks, ", ",
                     options.max_sequences, ", ", options.max_step_tokens));
  }
  if (options.instruction_set.has_value()) {
    const std::string why = kernels::WhyUnsupported(*options.instruction_set);
    if (!why.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("instruction set ", kernels::Name(*options.instruction_set), ": ", why));
    }
  }
  if (options.quantization == Quantization::kInt8 &&
      (options.dtype != RunnerDType::kBFloat16 || options.device != RunnerDevice::kCpu)) {
    return absl::InvalidArgumentError("int8 weights are for bfloat16 on the CPU only");
  }
  constexpr int64_t kMaxTaps = 64;  // what the token convolution's kernels hold in registers
  if (checkpoint.Has("readout.shortconv.weight")) {
    const int64_t taps = checkpoint.Get("readout.shortconv.weight").shape[1];
    if (taps > kMaxTaps) {
      return absl::InvalidArgumentError(
          absl::StrCat("readout.shortconv.weight: kernel size ", taps, " is more than ", kMaxTaps));
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t KvBytesPerToken(const Checkpoint& checkpoint, RunnerDType dtype, int32_t kv_block_size) {
  const ModelConfig& config = checkpoint.config();
  const int64_t element_bytes = dtype == RunnerDType::kFloat32 ? 4 : 2;
  int64_t tail_bytes = 0;  // of a block
  for (const Tails::Shape& tails : {Tails::OfCompress(checkpoint), Tails::OfShifts(checkpoint)}) {
    tail_bytes += tails.count * tails.width * static_cast<int64_t>(sizeof(float));
  }
  return 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim *
             element_bytes +
         (tail_bytes + kv_block_size - 1) / kv_block_size;
}

absl::Status CheckDevice(RunnerDevice device) {
  return device == RunnerDevice::kCuda ? MakeCudaDevice().status() : absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(
    std::shared_ptr<const Checkpoint> checkpoint, const RunnerOptions& options) {
  if (absl::Status status = CheckOptions(*checkpoint, options); !status.ok()) return status;
  const int num_threads =
      options.num_threads > 0 ? options.num_threads : DefaultThreads(checkpoint->parameter_count());
  auto threads = std::make_unique<ThreadPool>(num_threads, SpinOf(num_threads));
  absl::StatusOr<std::unique_ptr<Device>> device =
      options.device == RunnerDevice::kCuda
          ? MakeCudaDevice(options.batch_invariant)
          : MakeCpuDevice(MakeCpuKernels(
                options.instruction_set.value_or(kernels::BestInstructionSet()), threads.get()));
  if (!device.ok()) return device.status();
  const std::string device_name = (*device)->name();
  const std::optional<DeviceMemory> memory = (*device)->memory();
  try {
    const c10::InferenceMode inference_mode;
    at::set_num_threads(1);  // a second team on the same processors would slow both
    auto runner = std::make_unique<DdlModelRunner>(checkpoint, options, std::move(threads),
                                                   *std::move(device));
    if (options.kv_num_blocks == 0) {
      if (absl::Status status = runner->FillMemory(); !status.ok()) return status;
    }
    if (options.capture_graphs && options.device == RunnerDevice::kCuda) runner->CaptureGraphs();
    return runner;
  } catch (const c10::OutOfMemoryError&) {
    const int64_t weight_bytes =
        checkpoint->parameter_count() * (options.dtype == RunnerDType::kFloat32 ? 4 : 2);
    return absl::ResourceExhaustedError(absl::StrCat(
        "the model does not fit into the memory of ", device_name, ": ", memory->free_bytes >> 20,
        " MiB of ", memory->total_bytes >> 20, " MiB were free, the weights take ",
        weight_bytes >> 20, " MiB, the K/V cache ",
        KvBytesPerToken(*checkpoint, options.dtype, options.kv_block_size) * options.kv_block_size *
                options.kv_num_blocks >>
            20,
        " MiB, and the largest step its part"));
  } catch (const std::exception& error) {
    return TensorLibraryError("loading the model", error);
  }
}

}  // namespace ddl
