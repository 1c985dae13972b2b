#include "model/device/cuda/decode_graphs.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>
#include <vector>

#include "model/device/cuda/sampled_tokens.h"
#include "model/device/cuda/staged_copy.h"

namespace ddl {

CudaDecodeGraphs::Size CudaDecodeGraphs::SizeOf(const kernels::Batch& batch) const {
  constexpr int64_t kFewestBlocks = 32;
  const int64_t block_size = shape_.kv_block_size;
  const int64_t used = (batch.longest + block_size - 1) / block_size;
  int64_t blocks = kFewestBlocks;
  while (blocks < used) blocks *= 4;
  return {.rows = std::min<int64_t>(shape_.max_rows, static_cast<int64_t>(std::bit_ceil(
                                                         static_cast<uint64_t>(batch.tokens)))),
          .blocks = std::min(blocks, shape_.block_table_stride)};
}

StepInput CudaDecodeGraphs::Upload(const Size& size, const kernels::Batch& batch,
                                   const StepIds& ids, int64_t taps,
                                   const at::Tensor& memory) const {
  const int64_t rows = size.rows, stride = size.blocks;
  std::vector<int32_t> row_begin(rows + 1), position(rows, 0), slot(rows, shape_.spare_slot);
  std::vector<int32_t> block_table(rows * stride, shape_.spare_block);
  std::vector<int32_t> tail_source = slot, row_save(rows, -1), all_ids(rows * taps, -1);
  std::iota(row_begin.begin(), row_begin.end(), 0);
  for (int64_t row = batch.tokens; row < rows; ++row) all_ids[row * taps + taps - 1] = 0;
  std::copy(ids.ids.begin(), ids.ids.end(), all_ids.begin());
  std::copy_n(batch.position, batch.tokens, position.begin());
  std::copy_n(batch.slot, batch.tokens, slot.begin());
  for (int64_t row = 0; row < batch.tokens; ++row) {
    std::copy_n(batch.block_table + row * batch.block_table_stride,
                std::min(batch.block_table_stride, stride), block_table.begin() + row * stride);
  }
  const bool has_tails = batch.tail_source != nullptr;
  if (has_tails) {
    std::copy_n(batch.tail_source, batch.tokens, tail_source.begin());
    std::copy_n(batch.row_save, batch.tokens, row_save.begin());
  }

  StepInput input{.batch = {}, .ids = all_ids.data(), .memory = {}, .attention_plan = {}};
  input.batch.tokens = input.batch.sequences = rows;
  input.batch.row_begin = row_begin.data();
  input.batch.row_sequence = row_begin.data();  // row r is all of sequence r
  input.batch.position = position.data();
  input.batch.slot = slot.data();
  input.batch.block_table = block_table.data();
  input.batch.block_table_stride = stride;
  input.batch.longest = std::min(shape_.longest, stride * shape_.kv_block_size);
  if (has_tails) {
    input.batch.tail_source = tail_source.data();
    input.batch.row_save = row_save.data();
  }
  StagedCopy copy(device_);
  copy.Add(&input.batch.row_begin, rows + 1);
  copy.Add(&input.batch.row_sequence, rows);
  copy.Add(&input.batch.position, rows);
  copy.Add(&input.batch.slot, rows);
  copy.Add(&input.batch.block_table, rows * stride);
  copy.Add(&input.batch.tail_source, rows);
  copy.Add(&input.batch.row_save, rows);
  copy.Add(&input.ids, rows * taps);
  PendingIds pending(ids, rows);
  pending.AddTo(copy);
  input.memory = copy.Send(memory);
  pending.Fill(input.ids);  // rows that fill up come after the batch's
  return input;
}

bool CudaDecodeGraphs::Run(const kernels::Batch& batch, const StepIds& ids, const Layers& layers) {
  if (!can_capture_ || batch.tokens != batch.sequences || batch.tokens > shape_.max_rows) {
    return false;
  }
  const Size size = SizeOf(batch);
  const int64_t taps = static_cast<int64_t>(ids.ids.size()) / batch.tokens;
  auto graph = graphs_.find(size);
  if (graph == graphs_.end()) {
    // Of spare rows alone: capturing runs the launches.
    kernels::Batch nobody = batch;
    nobody.tokens = nobody.sequences = 0;
    const StepInput input = Upload(size, nobody, {}, taps, {});
    try {
      auto launches = cuda_runtime::Capture([layers, input] { layers(input); });
      graph = graphs_.emplace(size, Graph{input.memory, std::move(launches)}).first;
    } catch (const c10::Error& error) {
      TORCH_WARN("decodes run without CUDA graphs: ", error.what_without_backtrace());
      can_capture_ = false;
      return false;
    }
  }
  Upload(size, batch, ids, taps, graph->second.input);
  graph->second.launches->Replay();
  ++replays_;
  return true;
}

}  // namespace ddl
