#ifndef DDL_MODEL_WANTED_ROWS_H_
#define DDL_MODEL_WANTED_ROWS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/kernels/kernels.h"
#include "model/kernels/packed_batch.h"

namespace ddl {

// The rows of a batch that the last layer computes once all K and V are written, as a batch of
// their own: those whose results are wanted and, where `taps` > 1 tokens are convolved, those that
// these and the tails to be left depend on.
//
// A run of adjacent rows is a sequence of its own there. The last layer convolves twice, X before
// its MLP and before the head, so the first 2 (taps - 1) rows of a run that begins in the middle of
// a sequence only serve those after them: their own results have no meaning, whatever tails they go
// on from.
class WantedRows {
 public:
  // `wanted`: row numbers, ascending. `spare_slot`: of tails that belong to no sequence. Neither
  // `batch` nor `wanted` is referred to afterwards.
  WantedRows(const kernels::Batch& batch, absl::Span<const int32_t> wanted, int64_t taps,
             int32_t spare_slot);

  // Points into this object.
  kernels::Batch batch() const { return packed_.batch(); }
  const std::vector<int32_t>& rows() const { return rows_; }  // their numbers in the given batch

 private:
  // Rows [begin, end) of sequence s.
  void AddRun(const kernels::Batch& batch, int64_t s, int32_t begin, int32_t end, bool has_tails,
              int32_t spare_slot);

  kernels::PackedBatch packed_;
  std::vector<int32_t> rows_;
};

}  // namespace ddl

#endif  // DDL_MODEL_WANTED_ROWS_H_
