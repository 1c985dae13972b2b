#include "model/step_outputs.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "model/sampler.h"
#include "model/weights.h"

namespace ddl {
namespace {

// Rows of a batch.
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

absl::Status NonFinite(absl::string_view what) {
  return absl::InternalError(
      absl::StrCat("the model's ", what, " are not finite (NaN or infinity)"));
}

int64_t ReadoutLayer(const SequenceChunk& chunk, const DdlModel& model) {
  const int64_t layer = chunk.readout.layer.value_or(model.num_layers() - 1);
  DDL_CHECK(layer >= 0 && layer < model.num_layers(), "a readout of no layer");
  return layer;
}

// Whether a chunk's vectors are read from the state after a block: all but the final norm's of the
// last layer, which the forward pass gives anyway. Readouts over tokens read every chunk.
bool ReadsState(const SequenceChunk& chunk, const DdlModel& model) {
  if (chunk.readout.kind == HiddenReadout::Kind::kFinalNorm &&
      ReadoutLayer(chunk, model) == model.num_layers() - 1) {
    return false;
  }
  return chunk.hidden != Rows::kNone || model.ReadsOverTokens(chunk.readout.kind);
}

}  // namespace

bool StepOutputs::ReadsDuringLayers(absl::Span<const SequenceChunk> chunks, const DdlModel& model) {
  return std::any_of(chunks.begin(), chunks.end(), [&model](const SequenceChunk& chunk) {
    return chunk.ddl_stats || chunk.state_layer.has_value() || ReadsState(chunk, model);
  });
}

StepOutputs::StepOutputs(absl::Span<const SequenceChunk> chunks, const kernels::Batch& batch,
                         DdlModel* model, const Device* device, ThreadPool* threads)
    : chunks_(chunks),
      batch_(batch),
      model_(*model),
      device_(*device),
      threads_(*threads),
      outputs_(chunks.size()) {
  DDL_CHECK(batch.sequences == static_cast<int64_t>(chunks.size()),
            "not one sequence for each chunk");
}

// Of each chunk those between the first and the last that something is made of.
std::vector<int32_t> StepOutputs::HiddenRows() const {
  std::vector<int32_t> rows;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const SequenceChunk& chunk = chunks_[i];
    const int32_t first = batch_.row_begin[i], last = batch_.row_begin[i + 1];
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

DdlModel::StateObserver StepOutputs::MakeStateObserver() {
  const bool wanted =
      std::any_of(chunks_.begin(), chunks_.end(), [this](const SequenceChunk& chunk) {
        return chunk.state_layer.has_value() || ReadsState(chunk, model_);
      });
  if (!wanted) return nullptr;
  return [this](int64_t layer, const at::Tensor& x) {
    for (size_t i = 0; i < chunks_.size(); ++i) {
      const at::Tensor rows = x.slice(0, batch_.row_begin[i], batch_.row_begin[i + 1]);
      if (chunks_[i].state_layer == layer) outputs_[i].state = Floats(rows);
      if (ReadsState(chunks_[i], model_) && ReadoutLayer(chunks_[i], model_) == layer) {
        ReadState(chunks_[i], rows, outputs_[i]);
      }
    }
  };
}

DdlModel::Stats* StepOutputs::stats() {
  const bool wanted = std::any_of(chunks_.begin(), chunks_.end(),
                                  [](const SequenceChunk& chunk) { return chunk.ddl_stats; });
  return wanted ? &stats_ : nullptr;
}

void StepOutputs::ReadState(const SequenceChunk& chunk, const at::Tensor& x, ChunkOutput& output) {
  const HiddenReadout& readout = chunk.readout;
  DDL_CHECK(readout.kind != HiddenReadout::Kind::kChannel ||
                (readout.channel >= 0 && readout.channel < model_.value_channels()),
            "a readout of no channel");
  const bool over_tokens = model_.ReadsOverTokens(readout.kind);
  if (over_tokens && chunk.tails_from_block.has_value()) {
    output.status = absl::FailedPreconditionError(
        "a readout that convolves over tokens cannot go on from a block");
    return;
  }
  const RowRange wanted = Select(chunk.hidden, 0, x.size(0));
  const absl::StatusOr<at::Tensor> vectors =
      model_.Read(readout, ReadoutLayer(chunk, model_),
                  over_tokens ? x : x.slice(0, wanted.begin, wanted.end), chunk.slot, chunk.start);
  if (!vectors.ok()) {
    output.status = vectors.status();
    return;
  }
  output.hidden = Floats(over_tokens ? vectors->slice(0, wanted.begin, wanted.end) : *vectors);
}

void StepOutputs::Launched(const at::Tensor& hidden) {
  hidden_ = hidden;
  DeviceSamples samples;
  std::vector<int32_t> rows;  // in the batch, of each sample
  std::vector<SampleRequest> requests;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    if (!SamplesOnDevice(chunks_[i])) continue;
    samples.chunks.push_back(static_cast<int32_t>(i));
    rows.push_back(batch_.row_begin[i + 1] - 1);
    requests.push_back(*chunks_[i].sample);
  }
  if (rows.empty()) return;
  samples.tokens = device_.SampleTokens(LogitsOf(rows), requests);
  samples_ = std::make_shared<const DeviceSamples>(std::move(samples));
}

std::vector<ChunkOutput> StepOutputs::Collect() {
  CollectHidden();
  CollectSamples();
  ComputeLogits();
  ComputeScores();
  return std::move(outputs_);
}

void StepOutputs::CollectHidden() {
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const SequenceChunk& chunk = chunks_[i];
    if (chunk.ddl_stats) CollectStats(i, outputs_[i]);
    if (chunk.hidden == Rows::kNone) continue;
    if (!ReadsState(chunk, model_)) {
      const RowRange rows = Select(chunk.hidden, batch_.row_begin[i], batch_.row_begin[i + 1]);
      outputs_[i].hidden = Floats(hidden_.slice(0, rows.begin, rows.end));
    }
    if (!AllFinite(outputs_[i].hidden)) outputs_[i].status = NonFinite("hidden vectors");
  }
}

// The chunk's columns of the step's statistics, which are empty without the delta rule.
void StepOutputs::CollectStats(size_t chunk, ChunkOutput& output) const {
  const auto tokens = static_cast<size_t>(batch_.tokens);
  const int32_t begin = batch_.row_begin[chunk], end = batch_.row_begin[chunk + 1];
  for (size_t row = 0; row < stats_.beta.size(); row += tokens) {
    const auto copy = [&](const std::vector<float>& from, std::vector<float>& to) {
      to.insert(to.end(), from.begin() + row + begin, from.begin() + row + end);
    };
    copy(stats_.beta, output.beta);
    copy(stats_.update_ratio, output.update_ratio);
  }
  if (!AllFinite(output.beta) || !AllFinite(output.update_ratio)) {
    output.status = NonFinite("gates or updates");
  }
}

void StepOutputs::CollectSamples() {
  if (samples_ == nullptr) return;
  const std::vector<SampledToken> sampled = samples_->tokens->Wait();
  for (size_t n = 0; n < sampled.size(); ++n) {
    ChunkOutput& output = outputs_[samples_->chunks[n]];
    if (sampled[n].id < 0) {
      output.status = NonFinite("logits");
    } else {
      output.sampled = sampled[n];
    }
  }
}

void StepOutputs::ComputeLogits() {
  std::vector<int32_t> wanted_rows;              // in the batch
  std::vector<RowRange> ranges(chunks_.size());  // of each chunk, in wanted_rows
  for (size_t i = 0; i < chunks_.size(); ++i) {
    Rows rows = chunks_[i].logits;
    if (rows == Rows::kNone && chunks_[i].sample.has_value() && !SamplesOnDevice(chunks_[i])) {
      rows = Rows::kLast;
    }
    const RowRange range = Select(rows, batch_.row_begin[i], batch_.row_begin[i + 1]);
    ranges[i].begin = static_cast<int64_t>(wanted_rows.size());
    for (int64_t row = range.begin; row < range.end; ++row) {
      wanted_rows.push_back(static_cast<int32_t>(row));
    }
    ranges[i].end = static_cast<int64_t>(wanted_rows.size());
  }
  if (wanted_rows.empty()) return;
  const at::Tensor logits = LogitsOf(wanted_rows).to(at::kCPU);
  const int64_t vocab = logits.size(1);
  const float* data = logits.const_data_ptr<float>();

  threads_.ParallelFor(static_cast<int64_t>(chunks_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const RowRange& range = ranges[i];
      if (range.begin == range.end) continue;
      const absl::Span<const float> rows(data + range.begin * vocab,
                                         static_cast<size_t>((range.end - range.begin) * vocab));
      if (!AllFinite(rows)) {
        outputs_[i].status = NonFinite("logits");
        continue;
      }
      if (chunks_[i].logits != Rows::kNone) outputs_[i].logits.assign(rows.begin(), rows.end());
      if (chunks_[i].sample.has_value()) {
        outputs_[i].sampled = Sample(device_.host_kernels(), rows.last(static_cast<size_t>(vocab)),
                                     chunks_[i].sample.value());
      }
    }
  });
}

// So many rows of logits at a time that their memory stays small whatever the vocabulary and the
// step.
void StepOutputs::ComputeScores() {
  struct Target {
    size_t chunk, index;
  };
  std::vector<Target> targets;
  std::vector<int32_t> target_rows;  // in the batch
  for (size_t i = 0; i < chunks_.size(); ++i) {
    if (!chunks_[i].score.has_value()) continue;
    const size_t count = chunks_[i].score->targets.size();
    DDL_CHECK(static_cast<int64_t>(count) <= batch_.row_begin[i + 1] - batch_.row_begin[i],
              "a target that follows no position of its chunk");
    outputs_[i].scored.resize(count);
    for (size_t index = 0; index < count; ++index) {
      targets.push_back({i, index});
      target_rows.push_back(batch_.row_begin[i] + static_cast<int32_t>(index));
    }
  }
  constexpr size_t kRowsAtOnce = 64;
  for (size_t first = 0; first < targets.size(); first += kRowsAtOnce) {
    const size_t count = std::min(kRowsAtOnce, targets.size() - first);
    const at::Tensor logits =
        LogitsOf(absl::MakeConstSpan(target_rows).subspan(first, count)).to(at::kCPU);
    const auto vocab = static_cast<size_t>(logits.size(1));
    const float* data = logits.const_data_ptr<float>();
    std::vector<char> finite(count);
    threads_.ParallelFor(static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const Target& target = targets[first + n];
        const absl::Span<const float> row(data + n * vocab, vocab);
        finite[n] = AllFinite(row);
        if (!finite[n]) continue;
        const ScoreRequest& score = *chunks_[target.chunk].score;
        outputs_[target.chunk].scored[target.index] =
            Score(device_.host_kernels(), row, score.targets[target.index], score.vocab_size,
                  score.logprobs);
      }
    });
    for (size_t n = 0; n < count; ++n) {
      if (!finite[n]) outputs_[targets[first + n].chunk].status = NonFinite("logits");
    }
  }
}

bool StepOutputs::SamplesOnDevice(const SequenceChunk& chunk) const {
  return chunk.logits == Rows::kNone && chunk.sample.has_value() &&
         device_.CanSample(*chunk.sample);
}

at::Tensor StepOutputs::LogitsOf(absl::Span<const int32_t> rows) const {
  const bool all_rows = static_cast<int64_t>(rows.size()) == hidden_.size(0);
  return model_.Logits(all_rows ? hidden_ : device_.GatherRows(hidden_, rows));
}

bool StepOutputs::AllFinite(absl::Span<const float> values) const {
  return device_.host_kernels()
      .FindLargest(values.data(), static_cast<int64_t>(values.size()))
      .all_finite;
}

}  // namespace ddl
