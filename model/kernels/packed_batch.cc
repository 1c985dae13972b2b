#include "model/kernels/packed_batch.h"

#include <algorithm>

#include "base/check.h"

namespace ddl::kernels {

void PackedBatch::AddSequence(int32_t slot, int32_t tail_source, absl::Span<const int32_t> blocks) {
  DDL_CHECK(static_cast<int64_t>(blocks.size()) <= block_table_stride_,
            "a block table longer than the stride");
  row_begin_.push_back(row_begin_.back());
  slot_.push_back(slot);
  if (has_tails_) tail_source_.push_back(tail_source);
  block_table_.insert(block_table_.end(), blocks.begin(), blocks.end());
  block_table_.resize(slot_.size() * static_cast<size_t>(block_table_stride_), 0);
}

void PackedBatch::AddRow(int32_t position, int32_t row_save) {
  DDL_CHECK(!slot_.empty(), "a row of no sequence");
  ++row_begin_.back();
  row_sequence_.push_back(static_cast<int32_t>(slot_.size()) - 1);
  position_.push_back(position);
  if (has_tails_) row_save_.push_back(row_save);
  longest_ = std::max<int64_t>(longest_, int64_t{position} + 1);
}

Batch PackedBatch::batch() const {
  Batch batch;
  batch.tokens = tokens();
  batch.sequences = sequences();
  batch.row_begin = row_begin_.data();
  batch.row_sequence = row_sequence_.data();
  batch.position = position_.data();
  batch.slot = slot_.data();
  batch.block_table = block_table_.data();
  batch.block_table_stride = block_table_stride_;
  batch.longest = longest_;
  if (has_tails_) {
    batch.tail_source = tail_source_.data();
    batch.row_save = row_save_.data();
  }
  return batch;
}

}  // namespace ddl::kernels
