#ifndef DDL_MODEL_MODEL_RUNNER_H_
#define DDL_MODEL_MODEL_RUNNER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/checkpoint/model_config.h"
#include "model/hidden_readout.h"
#include "model/runner_options.h"
#include "model/sampler.h"
#include "model/token.h"

// The seam between the engine, which deals in integers, and the model, which deals in tensors.
// This header knows nothing of LibTorch, so that the engine and every server test build
// without it.

namespace ddl {

class Checkpoint;

// Which positions of a chunk a vector is wanted for.
enum class Rows { kNone, kLast, kAll };

// Log-probabilities of tokens that are given rather than drawn.
struct ScoreRequest {
  // The tokens that follow the chunk's first targets.size() positions.
  absl::Span<const TokenId> targets;
  TokenId vocab_size = 0;  // as in SampleRequest
  int32_t logprobs = 0;    // as in SampleRequest
};

// What one sequence contributes to a step: the positions [start, tokens.size()). All that it refers
// to, its sample's and score's arrays included, is to stay as it is from the step's Begin to the
// end of its Finish.
struct SequenceChunk {
  // Every token of the sequence up to the chunk's end, not only the chunk's own: convolutions
  // over the input read the few before `start`.
  absl::Span<const TokenId> tokens;
  // The last of them is not known yet, and what stands there means nothing: it is the token that
  // this chunk, by its place in the step begun before, draws. That step is not finished.
  std::optional<int32_t> last_token_from;
  int32_t start = 0;
  // Physical block of each block_size positions, covering tokens.size() of them.
  absl::Span<const int32_t> block_table;
  // Where the sequence's tails live, in [0, max_sequences). A chunk with start == 0 resets them;
  // otherwise they hold what the chunk that ended at `start` left there.
  int32_t slot = 0;
  // When `start` is where a block ends, and the position before was not computed in this slot
  // (the block was found in the prefix cache, or is shared with another sequence): that block.
  // The tails go on from what they were when its last position was computed, in an earlier step.
  std::optional<int32_t> tails_from_block;

  std::optional<SampleRequest> sample;  // draw a token after the last position
  std::optional<ScoreRequest> score;
  Rows hidden = Rows::kNone;  // vectors of positions
  // Which ones. kCompressed, and kFinalNorm before the last layer, convolve over tokens in TC
  // models and keep tails of their own in the slot: there every chunk of the sequence must name the
  // readout, from position 0 and without tails_from_block, even those with hidden == kNone.
  HiddenReadout readout;
  bool ddl_stats = false;  // gates and updates of every position
  Rows logits = Rows::kNone;
  // The state X after this layer's block, for every position of the chunk. In [0, num_layers).
  std::optional<int32_t> state_layer;
};

// Whether the host has a part in what is wanted of a chunk: all but a token without a list of
// likely ones.
inline bool NeedsHost(const SequenceChunk& chunk) {
  return (chunk.sample.has_value() && chunk.sample->logprobs > 0) || chunk.score.has_value() ||
         chunk.hidden != Rows::kNone || chunk.readout.kind != HiddenReadout::Kind::kFinalNorm ||
         chunk.readout.layer.has_value() || chunk.ddl_stats || chunk.logits != Rows::kNone ||
         chunk.state_layer.has_value();
}

struct ChunkOutput {
  // INTERNAL when the logits, vectors or statistics that were asked for are not finite,
  // FAILED_PRECONDITION when a readout over tokens lacks the positions before the chunk: that
  // sequence alone has failed.
  absl::Status status;
  std::optional<SampledToken> sampled;
  std::vector<SampledToken> scored;  // [targets] with `score`
  std::vector<float> hidden;         // [rows, d], or as the readout says
  // With `ddl_stats`, attention and MLP of layer 0, of layer 1 ... Empty for a model without the
  // delta rule.
  std::vector<float> beta;          // [2 * num_layers, chunk positions]
  std::vector<float> update_ratio;  // likewise; |beta k (v^T - k^T X)| / |X|, Frobenius
  std::vector<float> logits;        // [rows, vocab]
  std::vector<float> state;         // [chunk positions, d, dv]
};

// What the engine and the service need to know of a loaded model.
struct ModelDescription {
  Variant variant = Variant::kGpt;
  Revision revision = Revision::kD1f7621;
  std::string dtype;         // "float32" | "bfloat16": of activations, cache and large weights
  std::string quantization;  // "none" | "int8": of the matrix products
  std::string device;        // "cpu" | "cuda:N"
  // Of the processor, a kernels::Name: with a GPU what the host samples by.
  std::string instruction_set;
  int num_threads = 0;  // of the CPU, that compute
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

  int64_t activation_bytes = 0;  // what the largest step writes, caches aside

  // Whether the first step of a size takes longer than those after it, because a library or the
  // device prepares something for it.
  bool first_steps_are_slow = false;

  // Capacity of the caches, as allocated.
  int32_t kv_block_size = 0;  // tokens per block
  int32_t kv_num_blocks = 0;
  int32_t max_sequences = 0;  // slots

  // Steps that may have been begun and not be finished: more than one where steps are computed
  // beside the caller.
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

  // Begins a step over a packed ragged batch, and returns as soon as it can: what takes time goes
  // on beside the caller, or waits for Finish. At most max_step_tokens positions and
  // max_sequences chunks, each at least one position long, no two with the same slot. `chunks`
  // itself may go at once, what they refer to not before Finish.
  //
  // With max_in_flight_steps > 1 also before the step before is finished, if none of that one's
  // chunks NeedsHost. Steps are computed in the order in which they are begun, so that a block or a
  // slot that one of them uses may be another sequence's in the next.
  virtual void Begin(absl::Span<const SequenceChunk> chunks) = 0;
  // Waits for the step begun first of those not finished: outputs in the order of its chunks. A
  // failed status means that the whole step failed, in either call (an exception of the tensor
  // library, an exhausted device): the caches' content for these sequences is then undefined,
  // everyone else's is untouched; what a step begun since makes of a last_token_from has no
  // meaning. UNAVAILABLE: the device is lost, and so will be every later step.
  virtual absl::StatusOr<std::vector<ChunkOutput>> Finish() = 0;

  // Steps so far whose launches reached the device as one, a CUDA graph.
  virtual int64_t graph_replays() const { return 0; }

  // Both, with nothing else under way.
  absl::StatusOr<std::vector<ChunkOutput>> Forward(absl::Span<const SequenceChunk> chunks) {
    Begin(chunks);
    return Finish();
  }
};

}  // namespace ddl

#endif  // DDL_MODEL_MODEL_RUNNER_H_
