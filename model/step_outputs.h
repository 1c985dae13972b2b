#ifndef DDL_MODEL_STEP_OUTPUTS_H_
#define DDL_MODEL_STEP_OUTPUTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "base/thread_pool.h"
#include "model/ddl_model.h"
#include "model/device/device.h"
#include "model/kernels/kernels.h"
#include "model/sequence_chunk.h"

namespace ddl {

// The tokens of a step that its device samples.
struct DeviceSamples {
  std::vector<int32_t> chunks;  // the chunk that each belongs to, ascending
  std::unique_ptr<PendingTokens> tokens;
};

// What one step gives its chunks, taken from the model when it is there to be taken: states and
// statistics while the layers run, then tokens that the device samples, and once the step has run
// all that the host makes of hidden vectors and logits. The methods are called once each, in their
// order, by one thread; they may throw c10::Error, as the model may.
class StepOutputs {
 public:
  // Whether the host takes something while the layers run, and so waits for them.
  static bool ReadsDuringLayers(absl::Span<const SequenceChunk> chunks, const DdlModel& model);

  // `batch` has a sequence for each chunk. Everything given must outlive the object.
  StepOutputs(absl::Span<const SequenceChunk> chunks, const kernels::Batch& batch, DdlModel* model,
              const Device* device, ThreadPool* threads);
  StepOutputs(const StepOutputs&) = delete;
  StepOutputs& operator=(const StepOutputs&) = delete;

  // What DdlModel::Forward takes: the rows whose hidden vectors are needed, what reads states (null
  // where nobody wants them) and where statistics go (null likewise).
  std::vector<int32_t> HiddenRows() const;
  DdlModel::StateObserver MakeStateObserver();
  DdlModel::Stats* stats();

  // Once the layers are launched; `hidden` [tokens, d] is what Forward returned, and stays as it is
  // until Collect. Has the device sample what it can. Does not wait.
  void Launched(const at::Tensor& hidden);
  // Null: the device samples nothing.
  const std::shared_ptr<const DeviceSamples>& samples() const { return samples_; }

  // Once the step has run, or waits for what samples() brings: in the order of the chunks.
  std::vector<ChunkOutput> Collect();

 private:
  // Of one chunk. `x` [positions, d, dv] is its states after the readout's layer.
  void ReadState(const SequenceChunk& chunk, const at::Tensor& x, ChunkOutput& output);
  void CollectStats(size_t chunk, ChunkOutput& output) const;

  // Of all chunks.
  void CollectHidden();
  void CollectSamples();
  void ComputeLogits();  // and the tokens that the CPU samples from them
  void ComputeScores();

  // Whether a chunk's token is sampled on the device, and nothing else is made of its logits.
  bool SamplesOnDevice(const SequenceChunk& chunk) const;
  at::Tensor LogitsOf(absl::Span<const int32_t> rows) const;  // on the device
  bool AllFinite(absl::Span<const float> values) const;

  const absl::Span<const SequenceChunk> chunks_;
  const kernels::Batch batch_;
  DdlModel& model_;
  const Device& device_;
  ThreadPool& threads_;
  DdlModel::Stats stats_;
  at::Tensor hidden_;
  std::shared_ptr<const DeviceSamples> samples_;
  std::vector<ChunkOutput> outputs_;
};

}  // namespace ddl

#endif  // DDL_MODEL_STEP_OUTPUTS_H_
