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
#include "model/weights.h"

namespace ddl {
namespace {

absl::Status TensorLibraryError(absl::string_view doing, const std::exception& error) {
  return absl::InternalError(absl::StrCat(doing, " failed in the tensor library: ", error.what()));
}

// The packed form of a step's chunks: what kernels::Batch points into.
class PackedBatch {
 public:
  PackedBatch(absl::Span<const SequenceChunk> chunks, const RunnerOptions& options,
              const DdlModel& model) {
    const int64_t kv_block_size = options.kv_block_size, input_taps = model.input_taps();
    size_t stride = 0;
    for (const SequenceChunk& chunk : chunks) stride = std::max(stride, chunk.block_table.size());
    row_begin_.push_back(0);
    for (const SequenceChunk& chunk : chunks) {
      const auto length = static_cast<int32_t>(chunk.tokens.size());
      DDL_CHECK(chunk.start >= 0 && chunk.start < length, "a chunk has at least one position");
      DDL_CHECK(length <= model.max_context_length(), "the sequence is within max_context_length");
      DDL_CHECK(static_cast<int64_t>(chunk.block_table.size()) * kv_block_size >= length,
                "the block table covers the chunk");
      for (int32_t position = chunk.start; position < length; ++position) {
        row_sequence_.push_back(static_cast<int32_t>(slot_.size()));
        position_.push_back(position);
        if (model.has_tails()) {
          const bool ends_block = position % kv_block_size == kv_block_size - 1;
          const auto block = static_cast<size_t>(position / kv_block_size);
          row_save_.push_back(ends_block ? options.max_sequences + chunk.block_table[block] : -1);
        }
        for (int64_t tap = input_taps - 1; tap >= 0; --tap) {
          ids_.push_back(position >= tap ? chunk.tokens[position - tap] : -1);
        }
      }
      if (chunk.last_token_from.has_value()) {
        // The last tap of the last row: no other position sees it.
        unknown_.push_back(static_cast<int32_t>(ids_.size()) - 1);
        unknown_from_.push_back(*chunk.last_token_from);
      }
      row_begin_.push_back(static_cast<int32_t>(position_.size()));
      batch_.longest = std::max<int64_t>(batch_.longest, length);
      slot_.push_back(chunk.slot);
      if (model.has_tails()) tail_source_.push_back(TailSource(chunk, options));
      block_table_.insert(block_table_.end(), chunk.block_table.begin(), chunk.block_table.end());
      block_table_.resize(slot_.size() * stride, 0);
    }
    batch_.tokens = static_cast<int64_t>(position_.size());
    batch_.sequences = static_cast<int64_t>(slot_.size());
    batch_.row_begin = row_begin_.data();
    batch_.row_sequence = row_sequence_.data();
    batch_.position = position_.data();
    batch_.slot = slot_.data();
    batch_.block_table = block_table_.data();
    batch_.block_table_stride = static_cast<int64_t>(stride);
    batch_.tail_source = tail_source_.empty() ? nullptr : tail_source_.data();
    batch_.row_save = row_save_.empty() ? nullptr : row_save_.data();
  }
  PackedBatch(const PackedBatch&) = delete;
  PackedBatch& operator=(const PackedBatch&) = delete;

  const kernels::Batch& batch() const { return batch_; }
  const std::vector<int32_t>& ids() const { return ids_; }  // [tokens, input_taps]
  // Those that are not known: where they are in ids(), and which chunk of the step before draws
  // each.
  const std::vector<int32_t>& unknown() const { return unknown_; }
  const std::vector<int32_t>& unknown_from() const { return unknown_from_; }

 private:
  static int32_t TailSource(const SequenceChunk& chunk, const RunnerOptions& options) {
    if (!chunk.tails_from_block.has_value()) return chunk.slot;
    const int32_t block = *chunk.tails_from_block;
    DDL_CHECK(chunk.start > 0 && chunk.start % options.kv_block_size == 0,
              "tails are kept where a block ends");
    DDL_CHECK(block >= 0 && block < options.kv_num_blocks, "tails_from_block is a block");
    return options.max_sequences + block;
  }

  std::vector<int32_t> row_begin_, row_sequence_, position_, slot_, block_table_, ids_;
  std::vector<int32_t> tail_source_, row_save_;  // empty for a model without tails
  std::vector<int32_t> unknown_, unknown_from_;
  kernels::Batch batch_;
};

// Rows of the batch that an output is wanted for, of one chunk.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
};

RowRange Select(Rows rows, int64_t begin, int64_t end) {
  switch (rows) {
    case Rows::kNone:
      return {end, end};
    case Rows::kLast:
      return {end - 1, end};
    case Rows::kAll:
      return {begin, end};
  }
  return {end, end};
}

// Until FillMemory knows better.
RunnerOptions WithOneBlockAtLeast(RunnerOptions options) {
  options.kv_num_blocks = std::max(options.kv_num_blocks, 1);
  return options;
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
    description_.max_in_flight_steps = device_->runs_beside() ? 2 : 1;
    description_.batch_dependence = model_.FindBatchDependence();
    description_.activation_bytes = model_.activation_bytes();
    description_.first_steps_are_slow = device_->runs_beside();
  }

  const ModelDescription& description() const override { return description_; }
  int64_t graph_replays() const override { return model_.graph_replays(); }

  void Begin(absl::Span<const SequenceChunk> chunks) override {
    DDL_CHECK(static_cast<int32_t>(steps_.size()) < description_.max_in_flight_steps,
              "no more steps are under way than may be");
    const StepUnderWay* const before = steps_.empty() ? nullptr : &steps_.back();
    StepUnderWay& step = steps_.emplace_back();
    step.chunks.assign(chunks.begin(), chunks.end());
    if (before != nullptr) {
      DDL_CHECK(std::none_of(before->chunks.begin(), before->chunks.end(), NeedsHost),
                "nothing of a step is left to the host when the next is begun");
      step.status = before->status;  // nothing was drawn to go on from
      step.before = before->draws;
      if (!step.status.ok()) return;
    }
    if (device_->runs_beside() && !ReadsDuringTheLayers(chunks)) {
      step.status = Try([&] { Launch(step); });
    }
  }

  absl::StatusOr<std::vector<ChunkOutput>> Finish() override {
    DDL_CHECK(!steps_.empty(), "a step is begun before it is finished");
    StepUnderWay& step = steps_.front();
    if (step.status.ok()) {
      step.status = Try([&] {
        if (!step.packed.has_value()) Launch(step);
        Complete(step);
      });
    }
    absl::StatusOr<std::vector<ChunkOutput>> outputs = std::move(step.outputs);
    if (!step.status.ok()) outputs = step.status;
    steps_.pop_front();
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
  // A step of so many positions at the end of the context, from which as many tokens are
  // drawn as can be, most of them of few sequences. Every position is in block 0: what it computes
  // has no meaning.
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

  // What the device draws in a step.
  struct Draws {
    std::vector<int32_t> chunks;  // that draw, ascending
    std::unique_ptr<DrawnTokens> tokens;
  };
  // From Begin to Finish.
  struct StepUnderWay {
    std::vector<SequenceChunk> chunks;
    absl::Status status;
    // By Launch.
    std::optional<PackedBatch> packed;
    at::Tensor hidden;  // [tokens, d] until the next Launch
    DdlModel::Stats stats;
    std::shared_ptr<const Draws> draws;   // null: none
    std::unique_ptr<Milestone> end;       // of a step without draws, whose arrival says the same
    std::shared_ptr<const Draws> before;  // of the step that was under way when this one was begun
    std::vector<ChunkOutput> outputs;
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

  // Whether the host takes something out while the layers run, and so waits for them.
  bool ReadsDuringTheLayers(absl::Span<const SequenceChunk> chunks) const {
    return std::any_of(chunks.begin(), chunks.end(), [this](const SequenceChunk& chunk) {
      return chunk.ddl_stats || chunk.state_layer.has_value() || ReadsState(chunk);
    });
  }

  void Run(absl::Span<const SequenceChunk> chunks) {
    StepUnderWay step;
    step.chunks.assign(chunks.begin(), chunks.end());
    Launch(step);
    Complete(step);
  }

  // The layers, and the draws that the device does. Where it runs beside the host nothing waits,
  // but for what ReadsDuringTheLayers.
  void Launch(StepUnderWay& step) {
    const std::vector<SequenceChunk>& chunks = step.chunks;
    const kernels::Batch& batch = step.packed.emplace(chunks, options_, model_).batch();
    DDL_CHECK(batch.tokens <= options_.max_step_tokens, "the step is within max_step_tokens");
    step.outputs.resize(chunks.size());

    bool wants_state = false, wants_stats = false;
    for (const SequenceChunk& chunk : chunks) {
      wants_state |= chunk.state_layer.has_value() || ReadsState(chunk);
      wants_stats |= chunk.ddl_stats;
    }
    DdlModel::StateObserver observe_state;
    if (wants_state) {
      observe_state = [&](int64_t layer, const at::Tensor& x) {
        for (size_t i = 0; i < chunks.size(); ++i) {
          const at::Tensor rows = x.slice(0, batch.row_begin[i], batch.row_begin[i + 1]);
          if (chunks[i].state_layer == layer) step.outputs[i].state = Floats(rows);
          if (ReadsState(chunks[i]) && ReadoutLayer(chunks[i]) == layer) {
            ReadState(chunks[i], rows, step.outputs[i]);
          }
        }
      };
    }
    StepIds ids{.ids = step.packed->ids(), .from = {}, .to = step.packed->unknown()};
    std::vector<int32_t> from;
    if (!ids.to.empty()) {
      DDL_CHECK(step.before != nullptr, "a token is drawn by the step before");
      ids.drawn = step.before->tokens.get();
      for (const int32_t chunk : step.packed->unknown_from()) {
        const std::vector<int32_t>& drawing = step.before->chunks;
        const auto found = std::lower_bound(drawing.begin(), drawing.end(), chunk);
        DDL_CHECK(found != drawing.end() && *found == chunk,
                  "a token is drawn by a chunk that draws");
        from.push_back(static_cast<int32_t>(found - drawing.begin()));
      }
      ids.from = from;
    }
    step.hidden = model_.Forward(batch, ids, HiddenRows(chunks, batch), observe_state,
                                 wants_stats ? &step.stats : nullptr);
    DrawOnDevice(step);
    if (step.draws == nullptr) step.end = device_->Mark();
  }

  // What the host takes of a step that was launched.
  void Complete(StepUnderWay& step) {
    const std::vector<SequenceChunk>& chunks = step.chunks;
    const kernels::Batch& batch = step.packed->batch();
    std::vector<ChunkOutput>& outputs = step.outputs;
    if (step.end != nullptr) step.end->Wait();
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (chunks[i].ddl_stats) TakeStats(step.stats, batch, i, outputs[i]);
      if (chunks[i].hidden == Rows::kNone) continue;
      if (!ReadsState(chunks[i])) {
        const RowRange rows = Select(chunks[i].hidden, batch.row_begin[i], batch.row_begin[i + 1]);
        outputs[i].hidden = Floats(step.hidden.slice(0, rows.begin, rows.end));
      }
      if (!AllFinite(outputs[i].hidden)) outputs[i].status = NonFinite("hidden vectors");
    }
    TakeDrawn(step);
    ComputeLogits(chunks, batch, step.hidden, outputs);
    ComputeScores(chunks, batch, step.hidden, outputs);
  }

  // The rows whose hidden vectors something is made of: of each chunk those between the first and
  // the last.
  static std::vector<int32_t> HiddenRows(absl::Span<const SequenceChunk> chunks,
                                         const kernels::Batch& batch) {
    std::vector<int32_t> rows;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const SequenceChunk& chunk = chunks[i];
      const int32_t first = batch.row_begin[i], last = batch.row_begin[i + 1];
      int64_t begin = last, end = first;
      const auto add = [&](const RowRange& range) {
        if (range.begin == range.end) return;
        begin = std::min(begin, range.begin);
        end = std::max(end, range.end);
      };
      add(Select(chunk.hidden, first, last));
      add(Select(chunk.logits, first, last));
      if (chunk.sample.has_value()) add(Select(Rows::kLast, first, last));
      if (chunk.score.has_value()) {
        add({first, first + static_cast<int64_t>(chunk.score->targets.size())});
      }
      for (int64_t row = begin; row < end; ++row) rows.push_back(static_cast<int32_t>(row));
    }
    return rows;
  }

  int64_t ReadoutLayer(const SequenceChunk& chunk) const {
    const int64_t layer = chunk.readout.layer.value_or(description_.num_layers - 1);
    DDL_CHECK(layer >= 0 && layer < description_.num_layers, "a readout's layer exists");
    return layer;
  }

  // Whether a chunk's vectors are read from the state after a block: all but the final norm's of
  // the last layer, which the forward pass gives anyway. Readouts over tokens read every chunk.
  bool ReadsState(const SequenceChunk& chunk) const {
    if (chunk.readout.kind == HiddenReadout::Kind::kFinalNorm &&
        ReadoutLayer(chunk) == description_.num_layers - 1) {
      return false;
    }
    return chunk.hidden != Rows::kNone || model_.ReadsOverTokens(chunk.readout.kind);
  }

  // `x` is the chunk's states after the readout's layer.
  void ReadState(const SequenceChunk& chunk, const at::Tensor& x, ChunkOutput& output) {
    const HiddenReadout& readout = chunk.readout;
    DDL_CHECK(readout.kind != HiddenReadout::Kind::kChannel ||
                  (readout.channel >= 0 && readout.channel < description_.value_channels),
              "a readout's channel exists");
    const bool over_tokens = model_.ReadsOverTokens(readout.kind);
    if (over_tokens && chunk.tails_from_block.has_value()) {
      output.status = absl::FailedPreconditionError(
          "a readout that convolves over tokens cannot go on from a block");
      return;
    }
    const RowRange wanted = Select(chunk.hidden, 0, x.size(0));
    const absl::StatusOr<at::Tensor> vectors = model_.Read(
        readout, ReadoutLayer(chunk), over_tokens ? x : x.slice(0, wanted.begin, wanted.end),
        chunk.slot, chunk.start);
    if (!vectors.ok()) {
      output.status = vectors.status();
      return;
    }
    output.hidden = Floats(over_tokens ? vectors->slice(0, wanted.begin, wanted.end) : *vectors);
  }

  // The chunk's columns of the step's statistics, which are empty without the delta rule.
  void TakeStats(const DdlModel::Stats& stats, const kernels::Batch& batch, size_t chunk,
                 ChunkOutput& output) const {
    const auto tokens = static_cast<size_t>(batch.tokens);
    const int32_t begin = batch.row_begin[chunk], end = batch.row_begin[chunk + 1];
    for (size_t row = 0; row < stats.beta.size(); row += tokens) {
      const auto take = [&](const std::vector<float>& from, std::vector<float>& to) {
        to.insert(to.end(), from.begin() + row + begin, from.begin() + row + end);
      };
      take(stats.beta, output.beta);
      take(stats.update_ratio, output.update_ratio);
    }
    if (!AllFinite(output.beta) || !AllFinite(output.update_ratio)) {
      output.status = NonFinite("gates or updates");
    }
  }

  // hidden [tokens, d] -> logits of the given rows, on the device.
  at::Tensor LogitsOf(const at::Tensor& hidden, absl::Span<const int32_t> rows) const {
    const bool all_rows = static_cast<int64_t>(rows.size()) == hidden.size(0);
    return model_.Logits(all_rows ? hidden : device_->GatherRows(hidden, rows));
  }

  // Whether a chunk's token is drawn on the device, and nothing else is made of its logits.
  bool DrawsOnDevice(const SequenceChunk& chunk) const {
    return chunk.logits == Rows::kNone && chunk.sample.has_value() &&
           device_->CanDraw(*chunk.sample);
  }

  // The tokens that the device draws: its logits never leave it.
  void DrawOnDevice(StepUnderWay& step) const {
    Draws draws;
    std::vector<int32_t> rows;  // in the batch, of each chunk that draws
    std::vector<SampleRequest> requests;
    for (size_t i = 0; i < step.chunks.size(); ++i) {
      if (!DrawsOnDevice(step.chunks[i])) continue;
      draws.chunks.push_back(static_cast<int32_t>(i));
      rows.push_back(step.packed->batch().row_begin[i + 1] - 1);
      requests.push_back(*step.chunks[i].sample);
    }
    if (rows.empty()) return;
    draws.tokens = device_->DrawTokens(LogitsOf(step.hidden, rows), requests);
    step.draws = std::make_shared<const Draws>(std::move(draws));
  }

  // Waits for them.
  static void TakeDrawn(StepUnderWay& step) {
    if (step.draws == nullptr) return;
    const std::vector<SampledToken> drawn = step.draws->tokens->Wait();
    for (size_t n = 0; n < drawn.size(); ++n) {
      ChunkOutput& output = step.outputs[step.draws->chunks[n]];
      if (drawn[n].id < 0) {
        output.status = NonFinite("logits");
      } else {
        output.sampled = drawn[n];
      }
    }
  }

  // Logits of the rows that someone asked for, and the tokens that the CPU draws from them.
  void ComputeLogits(absl::Span<const SequenceChunk> chunks, const kernels::Batch& batch,
                     const at::Tensor& hidden, std::vector<ChunkOutput>& outputs) const {
    std::vector<int32_t> wanted_rows;             // in the batch
    std::vector<RowRange> ranges(chunks.size());  // of each chunk, in wanted_rows
    for (size_t i = 0; i < chunks.size(); ++i) {
      Rows rows = chunks[i].logits;
      if (rows == Rows::kNone && chunks[i].sample.has_value() && !DrawsOnDevice(chunks[i])) {
        rows = Rows::kLast;
      }
      const RowRange range = Select(rows, batch.row_begin[i], batch.row_begin[i + 1]);
      ranges[i].begin = static_cast<int64_t>(wanted_rows.size());
      for (int64_t row = range.begin; row < range.end; ++row) {
        wanted_rows.push_back(static_cast<int32_t>(row));
      }
      ranges[i].end = static_cast<int64_t>(wanted_rows.size());
    }
    if (wanted_rows.empty()) return;
    const at::Tensor logits = LogitsOf(hidden, wanted_rows).to(at::kCPU);
    const int64_t vocab = logits.size(1);
    const float* data = logits.const_data_ptr<float>();

    threads_->ParallelFor(static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const RowRange& range = ranges[i];
        if (range.begin == range.end) continue;
        const absl::Span<const float> rows(data + range.begin * vocab,
                                           static_cast<size_t>((range.end - range.begin) * vocab));
        if (!AllFinite(rows)) {
          outputs[i].status = NonFinite("logits");
          continue;
        }
        if (chunks[i].logits != Rows::kNone) outputs[i].logits.assign(rows.begin(), rows.end());
        if (chunks[i].sample.has_value()) {
          outputs[i].sampled =
              Sample(device_->host_kernels(), rows.last(static_cast<size_t>(vocab)),
                     chunks[i].sample.value());
        }
      }
    });
  }

  // Log-probabilities of given tokens. So many rows of logits at a time that their memory stays
  // small whatever the vocabulary and the step.
  void ComputeScores(absl::Span<const SequenceChunk> chunks, const kernels::Batch& batch,
                     const at::Tensor& hidden, std::vector<ChunkOutput>& outputs) const {
    struct Target {
      size_t chunk, index;
    };
    std::vector<Target> targets;
    std::vector<int32_t> target_rows;  // in the batch
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (!chunks[i].score.has_value()) continue;
      const size_t count = chunks[i].score->targets.size();
      DDL_CHECK(static_cast<int64_t>(count) <= batch.row_begin[i + 1] - batch.row_begin[i],
                "every target follows a position of its chunk");
      outputs[i].scored.resize(count);
      for (size_t index = 0; index < count; ++index) {
        targets.push_back({i, index});
        target_rows.push_back(batch.row_begin[i] + static_cast<int32_t>(index));
      }
    }
    constexpr size_t kRowsAtOnce = 64;
    for (size_t first = 0; first < targets.size(); first += kRowsAtOnce) {
      const size_t count = std::min(kRowsAtOnce, targets.size() - first);
      const at::Tensor logits =
          LogitsOf(hidden, absl::MakeConstSpan(target_rows).subspan(first, count)).to(at::kCPU);
      const auto vocab = static_cast<size_t>(logits.size(1));
      const float* data = logits.const_data_ptr<float>();
      std::vector<char> finite(count);
      threads_->ParallelFor(static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const Target& target = targets[first + n];
          const absl::Span<const float> row(data + n * vocab, vocab);
          finite[n] = AllFinite(row);
          if (!finite[n]) continue;
          const ScoreRequest& score = *chunks[target.chunk].score;
          outputs[target.chunk].scored[target.index] =
              Score(device_->host_kernels(), row, score.targets[target.index], score.vocab_size,
                    score.logprobs);
        }
      });
      for (size_t n = 0; n < count; ++n) {
        if (!finite[n]) outputs[targets[first + n].chunk].status = NonFinite("logits");
      }
    }
  }

  bool AllFinite(absl::Span<const float> values) const {
    return device_->host_kernels()
        .FindLargest(values.data(), static_cast<int64_t>(values.size()))
        .all_finite;
  }

  static absl::Status NonFinite(absl::string_view what) {
    return absl::InternalError(
        absl::StrCat("the model's ", what, " are not finite (NaN or infinity)"));
  }

  RunnerOptions options_;  // kv_num_blocks as allocated
  const std::unique_ptr<ThreadPool> threads_;
  const std::unique_ptr<const Device> device_;
  DdlModel model_;
  ModelDescription description_;
  std::deque<StepUnderWay> steps_;  // begun, not finished
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
