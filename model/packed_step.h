#ifndef DDL_MODEL_PACKED_STEP_H_
#define DDL_MODEL_PACKED_STEP_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/kernels/kernels.h"
#include "model/kernels/packed_batch.h"
#include "model/sequence_chunk.h"

namespace ddl {

// What packing takes of the model and its caches.
struct PackingOptions {
  int64_t input_taps = 1;          // tokens that the input expansion of a position sees
  int64_t max_context_length = 0;  // positions of a sequence
  int32_t kv_block_size = 0;       // positions
  int32_t kv_num_blocks = 0;
  int32_t max_sequences = 0;  // slots
  // Whether the model keeps tails: max_sequences slots for them, then one for each K/V block.
  bool has_tails = false;
};

// A step's chunks as the packed ragged batch that the model computes, in host memory. The chunks
// are not referred to afterwards. A chunk that breaks the rules of SequenceChunk ends the process.
class PackedStep {
 public:
  PackedStep(absl::Span<const SequenceChunk> chunks, const PackingOptions& options);

  // A sequence for each chunk, in their order. Points into this object.
  kernels::Batch batch() const { return batch_.batch(); }
  // [tokens, input_taps] oldest first, each row ending with its own position's token; -1 before the
  // sequence's start.
  const std::vector<int32_t>& ids() const { return ids_; }
  // The ids that are still being sampled, see SequenceChunk::last_token_from: their places in
  // ids(), and the index in the previous step of the chunk that samples each.
  const std::vector<int32_t>& pending() const { return pending_; }
  const std::vector<int32_t>& pending_from() const { return pending_from_; }

 private:
  kernels::PackedBatch batch_;
  std::vector<int32_t> ids_, pending_, pending_from_;
};

}  // namespace ddl

#endif  // DDL_MODEL_PACKED_STEP_H_
