#ifndef DDL_MODEL_KERNELS_PACKED_BATCH_H_
#define DDL_MODEL_KERNELS_PACKED_BATCH_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/kernels/kernels.h"

namespace ddl::kernels {

// A Batch in host memory, with the arrays that it points into, built sequence by sequence.
class PackedBatch {
 public:
  // Each sequence's block table has `block_table_stride` entries. Without `has_tails` the batch has
  // neither tail_source nor row_save.
  explicit PackedBatch(int64_t block_table_stride, bool has_tails = false)
      : block_table_stride_(block_table_stride), has_tails_(has_tails) {}

  // A sequence that has no rows yet. `blocks` may be shorter than the stride, and need only live
  // during the call.
  void AddSequence(int32_t slot, int32_t tail_source, absl::Span<const int32_t> blocks);
  void AddSequence(int32_t slot, absl::Span<const int32_t> blocks) {
    AddSequence(slot, slot, blocks);
  }
  // The next row of the sequence added last.
  void AddRow(int32_t position, int32_t row_save = -1);

  int64_t tokens() const { return static_cast<int64_t>(position_.size()); }
  int64_t sequences() const { return static_cast<int64_t>(slot_.size()); }
  // Points into this object, until it is moved, added to or destroyed.
  Batch batch() const;

 private:
  int64_t block_table_stride_;
  bool has_tails_;
  int64_t longest_ = 0;
  std::vector<int32_t> row_begin_ = {0};
  std::vector<int32_t> row_sequence_, position_, slot_, block_table_;
  std::vector<int32_t> tail_source_, row_save_;  // with has_tails_
};

}  // namespace ddl::kernels

#endif  // DDL_MODEL_KERNELS_PACKED_BATCH_H_
