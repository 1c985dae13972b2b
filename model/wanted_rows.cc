#include "model/wanted_rows.h"

#include <algorithm>

#include "base/check.h"

namespace ddl {
namespace {

// Adds to the wanted rows, keeps[row] != 0, the `before` rows before each, and makes every run end
// where tails are left: at a sequence's last row, or one with row_save.
void KeepWhatConvolutionsNeed(const kernels::Batch& batch, int64_t before,
                              std::vector<char>& keeps) {
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int32_t first = batch.row_begin[s], last = batch.row_begin[s + 1] - 1;
    for (int32_t row = first; row < last; ++row) {
      if (keeps[row] != 0 && batch.row_save[row] < 0) keeps[row + 1] = 1;
    }
    keeps[last] = 1;
    int64_t needed = 0;  // how many more rows, this one included, those after it depend on
    bool all = true;
    for (int32_t row = last; row >= first; --row) {
      if (keeps[row] != 0 || batch.row_save[row] >= 0) needed = before + 1;
      keeps[row] = needed > 0 ? 1 : 0;
      all &= needed > 0;
      --needed;
    }
    // A run may not go on from tails that another one leaves in the same step.
    if (!all && keeps[first] != 0 && batch.position[first] > 0 &&
        batch.tail_source[s] == batch.slot[s]) {
      std::fill(keeps.begin() + first, keeps.begin() + last + 1, 1);
    }
  }
}

}  // namespace

WantedRows::WantedRows(const kernels::Batch& batch, absl::Span<const int32_t> wanted, int64_t taps,
                       int32_t spare_slot)
    : packed_(batch.block_table_stride, /*has_tails=*/taps > 1) {
  std::vector<char> keeps(batch.tokens);
  for (const int32_t row : wanted) keeps[row] = 1;
  if (taps > 1) KeepWhatConvolutionsNeed(batch, 2 * (taps - 1), keeps);
  for (int64_t s = 0; s < batch.sequences; ++s) {
    for (int32_t row = batch.row_begin[s]; row < batch.row_begin[s + 1];) {
      const int32_t begin = row;
      while (row < batch.row_begin[s + 1] && keeps[row] != 0) ++row;
      if (row > begin) AddRun(batch, s, begin, row, taps > 1, spare_slot);
      if (row == begin) ++row;
    }
  }
}

void WantedRows::AddRun(const kernels::Batch& batch, int64_t s, int32_t begin, int32_t end,
                        bool has_tails, int32_t spare_slot) {
  const bool is_last = end == batch.row_begin[s + 1];
  const int32_t slot = has_tails && !is_last ? batch.row_save[end - 1] : batch.slot[s];
  DDL_CHECK(slot >= 0, "a run that ends where no tails are left");
  int32_t tail_source = slot;
  if (has_tails) tail_source = begin == batch.row_begin[s] ? batch.tail_source[s] : spare_slot;
  packed_.AddSequence(slot, tail_source,
                      {batch.block_table + s * batch.block_table_stride,
                       static_cast<size_t>(batch.block_table_stride)});
  for (int32_t row = begin; row < end; ++row) {
    rows_.push_back(row);
    const bool saves = has_tails && (is_last || row + 1 < end);  // else it is the run's own slot
    packed_.AddRow(batch.position[row], saves ? batch.row_save[row] : -1);
  }
}

}  // namespace ddl
