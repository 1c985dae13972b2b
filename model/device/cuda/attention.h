#ifndef DDL_MODEL_DEVICE_CUDA_ATTENTION_H_
#define DDL_MODEL_DEVICE_CUDA_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/kernels/kernels.h"

namespace ddl::kernels {

// A stretch of a batch's rows, whole sequences, all attended to in one way.
struct AttentionRun {
  // Whether K and V are gathered and flash attention reads them once for many rows. Otherwise
  // cuda::PagedAttention reads them where they are, for every row: decodes, above all.
  bool gathered = false;
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t first_sequence = 0;
  int64_t sequences = 0;
  int64_t most_rows = 0;  // of a sequence
  int64_t longest = 0;    // positions of a sequence
  int64_t positions = 0;  // of all sequences
  int64_t begins = 0;     // where its part of AttentionPlan::begins is
};

// All rows of a batch, in their order.
struct AttentionPlan {
  std::vector<AttentionRun> runs;
  // For each gathered run [2, sequences + 1], counted from the run's first: where the rows of each
  // sequence begin, then where its positions do.
  std::vector<int32_t> begins;
  const int32_t* device_begins = nullptr;  // the same in the device's memory
};

}  // namespace ddl::kernels

namespace ddl {

// Fewer rows of a sequence than this are attended to one by one: gathering reads K and V, writes
// them, and has them read again.
constexpr int64_t kLeastGatheredRows = 4;

// The plan of a batch in host memory, without device_begins. No run gathers more positions than
// GatheredPositions(batch), unless it is a single sequence. Without runs if nothing is gathered.
kernels::AttentionPlan MakeAttentionPlan(const kernels::Batch& batch);
int64_t GatheredPositions(const kernels::Batch& batch);

// kernels::PagedAttention on the device, by the batch's plan where the device has flash attention
// for the type and head size.
void CudaAttention(at::Device device, const kernels::Batch& batch,
                   const kernels::PagedAttentionArgs& args);

}  // namespace ddl

#endif  // DDL_MODEL_DEVICE_CUDA_ATTENTION_H_
