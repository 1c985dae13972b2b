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

// kernels::PagedAttention on a device, with the memory that this keeps between calls. Used by one
// thread at a time.
class CudaAttention {
 public:
  explicit CudaAttention(at::Device device) : device_(device) {}

  // By the batch's plan where the device has flash attention for the type and head size.
  void Run(const kernels::Batch& batch, const kernels::PagedAttentionArgs& args);

 private:
  void RunInPlace(const kernels::Batch& batch, const kernels::PagedAttentionArgs& args);
  int32_t* Arrivals(int64_t count);

  const at::Device device_;
  // The last is [as many as were ever needed] zeros between kernels. Those it has outgrown stay:
  // captured graphs point to them.
  std::vector<at::Tensor> arrivals_;
};

}  // namespace ddl

#endif  // DDL_MODEL_DEVICE_CUDA_ATTENTION_H_
