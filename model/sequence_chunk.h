#ifndef DDL_MODEL_SEQUENCE_CHUNK_H_
#define DDL_MODEL_SEQUENCE_CHUNK_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "model/hidden_readout.h"
#include "model/sampler.h"
#include "model/token.h"

// A sequence's part of a step: what ModelRunner is given of it, and what it gives.

namespace ddl {

// The positions of a chunk that something is wanted of.
enum class Rows { kNone, kLast, kAll };

// Log-probabilities of tokens that are given rather than sampled.
struct ScoreRequest {
  // The tokens that follow the chunk's first targets.size() positions.
  absl::Span<const TokenId> targets;
  TokenId vocab_size = 0;  // as in SampleRequest
  int32_t logprobs = 0;    // as in SampleRequest
};

// What one sequence contributes to a step: the positions [start, tokens.size()). All that it refers
// to, its sample's and score's arrays included, must live and stay unchanged from the step's Begin
// to the end of its Finish.
struct SequenceChunk {
  // Every token of the sequence up to the chunk's end, not only the chunk's own: convolutions
  // over the input read the few before `start`.
  absl::Span<const TokenId> tokens;
  // The last of them is still pending, and its value here is ignored: it is the token that the
  // chunk with this index in the previous step samples. That step is begun and not finished.
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

  std::optional<SampleRequest> sample;  // sample a token after the last position
  std::optional<ScoreRequest> score;
  Rows hidden = Rows::kNone;  // vectors of positions
  // Which vectors. kCompressed, and kFinalNorm before the last layer, convolve over tokens in TC
  // models and keep tails of their own in the slot: there every chunk of the sequence must name the
  // readout, from position 0 and without tails_from_block, even those with hidden == kNone.
  HiddenReadout readout;
  bool ddl_stats = false;  // gates and updates of every position
  Rows logits = Rows::kNone;
  // The state X after this layer's block, for every position of the chunk. In [0, num_layers).
  std::optional<int32_t> state_layer;
};

// Whether the host has a part in what is wanted of a chunk: in all but a token without a list of
// the most likely ones.
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

}  // namespace ddl

#endif  // DDL_MODEL_SEQUENCE_CHUNK_H_
