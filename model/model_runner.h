#ifndef DDL_MODEL_MODEL_RUNNER_H_
#define DDL_MODEL_MODEL_RUNNER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/checkpoint/model_config.h"
#include "model/runner_options.h"
#include "model/sequence_chunk.h"

// The seam between the engine, which deals in integers, and the model, which deals in tensors.
// This header is free of LibTorch, so that the engine and every server test build without it.

namespace ddl {

class Checkpoint;

// What the engine and the service need of a loaded model.
struct ModelDescription {
  Variant variant = Variant::kGpt;
  Revision revision = Revision::kD1f7621;
  std::string dtype;         // "float32" | "bfloat16": of activations, cache and large weights
  std::string quantization;  // "none" | "int8": of the weights that matrix products read
  std::string device;        // "cpu" | "cuda:N"
  // Of the CPU's kernels, a kernels::Name; with a GPU of those that the host samples with.
  std::string instruction_set;
  int num_threads = 0;  // that compute on the CPU
  // Where a request's results depend, in their last bits, on what is computed beside it, as tried
  // when the model was loaded. Empty: nowhere.
  std::string batch_dependence;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t hidden_size = 0;     // d
  int64_t value_channels = 0;  // dv
  int64_t vocab_size = 0;      // rows of the embedding, padding included
  int64_t block_size = 0;      // context length of config.json, tokens
  int64_t parameter_count = 0;
  int64_t kv_bytes_per_token = 0;  // see KvBytesPerToken

  int64_t activation_bytes = 0;  // of the largest step's buffers, without the caches

  // Whether the first step of a size takes longer than those after it, because a library or the
  // device prepares something for it.
  bool first_steps_are_slow = false;

  // Capacity of the caches, as allocated.
  int32_t kv_block_size = 0;  // tokens per block
  int32_t kv_num_blocks = 0;
  int32_t max_sequences = 0;  // slots

  // Steps that may be begun and not finished at a time: more than one where steps are computed
  // asynchronously.
  int32_t max_in_flight_steps = 1;
};

// Bytes of cache that one token takes in the given type, all layers: its K and V, and its share of
// the tails that are kept for each block of `kv_block_size` tokens, rounded up.
int64_t KvBytesPerToken(const Checkpoint& checkpoint, RunnerDType dtype, int32_t kv_block_size);

// OK if this program can compute there on this machine; otherwise FAILED_PRECONDITION, in one line
// that says why not.
absl::Status CheckDevice(RunnerDevice device);

// A DDL transformer with its paged caches. Used by one thread at a time.
class ModelRunner {
 public:
  // The checkpoint's mappings are kept alive by the runner where weights are used in place.
  // FAILED_PRECONDITION as of CheckDevice, RESOURCE_EXHAUSTED in one line when the GPU's memory
  // does not hold the model and one K/V block.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(
      std::shared_ptr<const Checkpoint> checkpoint, const RunnerOptions& options);
  virtual ~ModelRunner() = default;

  // Constant after creation.
  virtual const ModelDescription& description() const = 0;

  // Begins a step over a packed ragged batch, and returns as soon as it can: what takes time is
  // computed asynchronously, or in Finish. At most max_step_tokens positions and max_sequences
  // chunks, each at least one position long, no two with the same slot. `chunks` need only live
  // during the call, what they refer to until the end of Finish.
  //
  // With max_in_flight_steps > 1 also before the previous step is finished, if none of that one's
  // chunks NeedsHost. Steps are computed in the order in which they are begun, so that a block or a
  // slot that one of them uses may be another sequence's in the next.
  virtual void Begin(absl::Span<const SequenceChunk> chunks) = 0;
  // Waits for the oldest step in flight: outputs in the order of its chunks. A failed status means
  // that the whole step failed, in either call (an exception of the tensor library, an exhausted
  // device): the caches' content for these sequences is then undefined, that of all others
  // untouched; what a later step makes of a last_token_from has no meaning. UNAVAILABLE: the device
  // is lost, and every later step will fail.
  virtual absl::StatusOr<std::vector<ChunkOutput>> Finish() = 0;

  // Steps so far whose launches reached the device as one, a CUDA graph.
  virtual int64_t graph_replays() const { return 0; }

  // Both, with no other step in flight.
  absl::StatusOr<std::vector<ChunkOutput>> Forward(absl::Span<const SequenceChunk> chunks) {
    Begin(chunks);
    return Finish();
  }
};

}  // namespace ddl

#endif  // DDL_MODEL_MODEL_RUNNER_H_
