#include "model/device/cuda/attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "model/device/cuda/runtime.h"
#include "model/kernels/cuda/cuda_kernels.h"

namespace ddl {
namespace {

namespace cuda = kernels::cuda;
using kernels::AttentionRun;

int64_t ElementBytes(kernels::Type type) { return type == kernels::Type::kFloat32 ? 4 : 2; }

at::ScalarType ScalarType(kernels::Type type) {
  return type == kernels::Type::kFloat32 ? at::kFloat : at::kBFloat16;
}

const void* Advance(const void* p, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<const unsigned char*>(p) + bytes;
}

// `args` from row `row` on.
kernels::PagedAttentionArgs FromRow(const kernels::PagedAttentionArgs& args, int64_t row) {
  const int64_t row_bytes = args.heads * args.head_dim * ElementBytes(args.type);
  kernels::PagedAttentionArgs from = args;
  from.q = Advance(args.q, row * args.q_stride * ElementBytes(args.type));
  from.gate = Advance(args.gate, row * row_bytes);
  from.y = static_cast<unsigned char*>(args.y) + row * row_bytes;
  return from;
}

// Rows `first` to `first + count` - 1 of a batch, as far as attention looks at it.
kernels::Batch RowsOf(const kernels::Batch& batch, int64_t first, int64_t count) {
  kernels::Batch rows = batch;
  rows.tokens = count;
  rows.row_sequence += first;
  rows.position += first;
  return rows;
}

// A part of memory that the caller keeps, as a tensor.
at::Tensor View(const void* p, at::IntArrayRef sizes, at::IntArrayRef strides,
                const at::TensorOptions& options) {
  return at::for_blob(const_cast<void*>(p), sizes)
      .strides(strides)
      .options(options)
      .target_device(options.device())
      .make_tensor();
}

// `args` are those from the run's first row on; `workspace` [2, positions, H, hd] takes its K and
// V.
void AttendGathered(const kernels::Batch& batch, const AttentionRun& run,
                    const at::Tensor& workspace, const kernels::PagedAttentionArgs& args) {
  const int32_t* const begins = batch.attention_plan->device_begins + run.begins;
  const at::TensorOptions ints = workspace.options().dtype(at::kInt);
  const at::Tensor row_begin = View(begins, {run.sequences + 1}, {1}, ints);
  const at::Tensor position_begin =
      View(begins + run.sequences + 1, {run.sequences + 1}, {1}, ints);
  const at::Tensor k = workspace.select(0, 0).narrow(0, 0, run.positions);
  const at::Tensor v = workspace.select(0, 1).narrow(0, 0, run.positions);

  cuda::GatherContextArgs gather;
  gather.type = args.type;
  gather.heads = args.heads;
  gather.head_dim = args.head_dim;
  gather.cache = args.cache;
  gather.position_begin = position_begin.const_data_ptr<int32_t>();
  gather.k = k.data_ptr();
  gather.v = v.data_ptr();
  cuda_runtime::Check(
      cuda::GatherContext(cuda_runtime::CurrentStream(), run.sequences,
                          batch.block_table + run.first_sequence * batch.block_table_stride,
                          batch.block_table_stride, run.longest, gather),
      "GatherContext");
  const at::Tensor q = View(args.q, {run.rows, args.heads, args.head_dim},
                            {args.q_stride, args.head_dim, 1}, workspace.options());
  const at::Tensor attended =
      cuda_runtime::FlashAttention(q, k, v, row_begin, position_begin, run.most_rows, run.longest);
  cuda_runtime::Check(cuda::FinishAttention(cuda_runtime::CurrentStream(), run.rows, args,
                                            attended.const_data_ptr()),
                      "FinishAttention");
}

}  // namespace

int64_t GatheredPositions(const kernels::Batch& batch) {
  return std::max(batch.longest, batch.tokens);
}

kernels::AttentionPlan MakeAttentionPlan(const kernels::Batch& batch) {
  kernels::AttentionPlan plan;
  bool any = false;
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int64_t first_row = batch.row_begin[s], rows = batch.row_begin[s + 1] - first_row;
    const int64_t positions = batch.position[first_row + rows - 1] + 1;
    const bool gathered = rows >= kLeastGatheredRows;
    any |= gathered;
    if (plan.runs.empty() || plan.runs.back().gathered != gathered ||
        (gathered && plan.runs.back().positions + positions > GatheredPositions(batch))) {
      AttentionRun& run = plan.runs.emplace_back();
      run.gathered = gathered;
      run.first_row = first_row;
      run.first_sequence = s;
    }
    AttentionRun& run = plan.runs.back();
    run.rows += rows;
    ++run.sequences;
    run.most_rows = std::max(run.most_rows, rows);
    run.longest = std::max(run.longest, positions);
    run.positions += positions;
  }
  if (!any) return {};
  for (AttentionRun& run : plan.runs) {
    if (!run.gathered) continue;
    run.begins = static_cast<int64_t>(plan.begins.size());
    const int32_t* const row_begin = batch.row_begin + run.first_sequence;
    for (int64_t s = 0; s <= run.sequences; ++s) {
      plan.begins.push_back(row_begin[s] - row_begin[0]);
    }
    int32_t positions = 0;
    plan.begins.push_back(positions);
    for (int64_t s = 0; s < run.sequences; ++s) {
      positions += batch.position[row_begin[s + 1] - 1] + 1;
      plan.begins.push_back(positions);
    }
  }
  return plan;
}

int32_t* CudaAttention::Arrivals(int64_t count) {
  if (arrivals_.empty() || arrivals_.back().numel() < count) {
    arrivals_.push_back(at::zeros({count}, at::TensorOptions().dtype(at::kInt).device(device_)));
  }
  return arrivals_.back().data_ptr<int32_t>();
}

void CudaAttention::RunInPlace(const kernels::Batch& batch,
                               const kernels::PagedAttentionArgs& args) {
  // Rows of long prompts come in parts, so that their splits do not take more memory than K and V.
  constexpr int64_t kMaxWorkspaceFloats = int64_t{1} << 26;
  const int64_t floats_of_row = cuda::PagedAttentionWorkspaceFloats(1, args, batch.longest);
  int64_t most_rows = batch.tokens;
  if (floats_of_row > 0) {
    most_rows = std::clamp<int64_t>(kMaxWorkspaceFloats / floats_of_row, 1, batch.tokens);
  }
  // Freed before its kernels have run: what reuses it comes later in the same stream.
  const at::Tensor workspace =
      at::empty({most_rows * floats_of_row}, at::TensorOptions().dtype(at::kFloat).device(device_));
  const bool splits = floats_of_row > 0;
  for (int64_t first = 0; first < batch.tokens; first += most_rows) {
    const kernels::Batch rows = RowsOf(batch, first, std::min(most_rows, batch.tokens - first));
    cuda_runtime::Check(
        cuda::PagedAttention(cuda_runtime::CurrentStream(), rows, FromRow(args, first),
                             batch.longest, splits ? workspace.data_ptr<float>() : nullptr,
                             splits ? Arrivals(most_rows * args.heads) : nullptr),
        "PagedAttention");
  }
}

void CudaAttention::Run(const kernels::Batch& batch, const kernels::PagedAttentionArgs& args) {
  const at::ScalarType type = ScalarType(args.type);
  if (batch.attention_plan == nullptr || !cuda_runtime::HasFlashAttention(type, args.head_dim)) {
    RunInPlace(batch, args);
    return;
  }
  const at::TensorOptions options = at::TensorOptions().dtype(type).device(device_);
  // As many positions for every step of this size, so that the largest step says what is needed.
  const at::Tensor workspace =
      at::empty({2, GatheredPositions(batch), args.heads, args.head_dim}, options);
  for (const AttentionRun& run : batch.attention_plan->runs) {
    const kernels::PagedAttentionArgs run_args = FromRow(args, run.first_row);
    if (run.gathered) {
      AttendGathered(batch, run, workspace, run_args);
      continue;
    }
    kernels::Batch rows = RowsOf(batch, run.first_row, run.rows);
    rows.longest = run.longest;
    RunInPlace(rows, run_args);
  }
}

}  // namespace ddl
