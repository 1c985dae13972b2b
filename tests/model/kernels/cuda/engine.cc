#include "tests/model/kernels/cuda/engine.h"

#include <algorithm>

#include "base/check.h"
#include "gtest/gtest.h"
#include "model/kernels/cpu/cpu_kernels.h"
#include "model/kernels/cuda/cuda_kernels.h"
#include "model/kernels/instruction_set.h"
#include "tests/model/kernels/cuda/session.h"

namespace ddl::kernels {
namespace {

size_t Bytes(Type type, int64_t elements) {
  return static_cast<size_t>(elements) * (type == Type::kFloat32 ? 4 : 2);
}
size_t Floats(int64_t elements) { return Bytes(Type::kFloat32, elements); }

const CpuKernels& Cpu() {
  static const auto& kernels = *MakeCpuKernels(BestInstructionSet(), {}).release();
  return kernels;
}

// For kernels that ask no more of a batch than how many rows it has.
Batch RowsAlone(int64_t tokens) {
  Batch batch;
  batch.tokens = tokens;
  return batch;
}

Batch In(CudaSession& session, const RaggedBatch& ragged) {
  Batch batch = ragged.batch;
  batch.row_begin = session.In(batch.row_begin, 4 * (batch.sequences + 1));
  batch.row_sequence = session.In(batch.row_sequence, 4 * batch.tokens);
  batch.position = session.In(batch.position, 4 * batch.tokens);
  batch.slot = session.In(batch.slot, 4 * batch.sequences);
  batch.tail_source = session.In(batch.tail_source, 4 * batch.sequences);
  batch.row_save = session.In(batch.row_save, 4 * batch.tokens);
  batch.block_table = session.In(batch.block_table, 4 * batch.sequences * batch.block_table_stride);
  return batch;
}

}  // namespace

std::vector<Engine> Engines() {
  if (!cuda::WhyUnavailable().empty()) return {};  // cuda_device_test.cc says why
  std::vector<Engine> engines = {{"cpu", Where::kCpu, 0}};
  engines.push_back({"cuda", Where::kCuda, 0});
  engines.push_back({"cuda_shuffled", Where::kCuda, 2});
  return engines;
}

void RunKernel(const Engine& engine, int64_t tokens, int64_t vocabulary,
               const ExpandInputArgs& args) {
  if (engine.where == Where::kCpu) return Cpu().ExpandInput(RowsAlone(tokens), args);
  cuda::ChooseSchedule(engine.schedule);
  CudaSession session;
  ExpandInputArgs device = args;
  device.embedding = session.In(args.embedding, Bytes(args.type, vocabulary * args.d));
  device.conv = session.In(args.conv, Floats(args.d * args.dv * args.taps));
  device.ids = session.In(args.ids, 4 * tokens * args.taps);
  device.x = session.InOut(args.x, Bytes(args.type, tokens * args.d * args.dv));
  ASSERT_EQ(cuda::ExpandInput(nullptr, tokens, device), cuda::kSuccess);
  session.CopyBack();
}

void RunKernel(const Engine& engine, const RaggedBatch& ragged, const DeltaStepArgs& args) {
  if (engine.where == Where::kCpu) return Cpu().DeltaStep(ragged.batch, args);
  cuda::ChooseSchedule(engine.schedule);
  CudaSession session;
  const Batch batch = In(session, ragged);
  const int64_t tokens = batch.tokens, d = args.d, dv = args.dv;
  DeltaStepArgs device = args;
  device.x = session.InOut(args.x, Bytes(args.type, tokens * d * dv));
  device.h = session.In(args.h, Bytes(args.type, tokens * d));
  const int64_t taps = args.compress == Compress::kToken ? args.taps : 1;
  if (args.compress == Compress::kIdentity) device.compress_weight = nullptr;
  device.compress_weight = session.In(device.compress_weight, Floats(taps * d * dv));
  device.tail = session.InOut(args.tail, Floats(ragged.slots() * args.tail_stride));
  device.norm_weight = session.In(args.norm_weight, Floats(d));
  const int64_t hidden = args.gate.beta_hidden;
  const bool two_layers = args.gate.beta_in != nullptr;
  device.gate.beta_weight = session.In(args.gate.beta_weight, Floats(two_layers ? hidden : d));
  device.gate.beta_in = session.In(args.gate.beta_in, Floats(hidden * d));
  device.gate.v_weight = session.In(args.gate.v_weight, Floats(dv * d));
  device.gate.v_bias = session.In(args.gate.v_bias, Floats(dv));
  device.x_in = session.InOut(args.x_in, Bytes(args.type, tokens * d));
  device.c = session.InOut(args.c, Bytes(args.type, tokens * d));
  device.v = session.InOut(args.v, Floats(tokens * dv));
  device.beta = session.InOut(args.beta, Floats(tokens));
  device.update_ratio = session.InOut(args.update_ratio, Floats(tokens));
  ASSERT_EQ(cuda::DeltaStep(nullptr, batch, device), cuda::kSuccess);
  session.CopyBack();
}

void RunKernel(const Engine& engine, const RaggedBatch& ragged, int64_t rope_positions,
               const AttentionInputArgs& args) {
  if (engine.where == Where::kCpu) return Cpu().AttentionInput(ragged.batch, args);
  cuda::ChooseSchedule(engine.schedule);
  CudaSession session;
  const Batch batch = In(session, ragged);
  const int64_t heads = args.heads, hd = args.head_dim;
  AttentionInputArgs device = args;
  device.c = session.In(args.c, Bytes(args.type, batch.tokens * args.d));
  device.qkv = session.InOut(args.qkv, Bytes(args.type, batch.tokens * 3 * heads * hd));
  for (Shift* shift : {&device.k_shift, &device.v_shift}) {
    shift->weight = session.In(shift->weight, Floats(heads * args.d));
  }
  // Both tails lie in one tensor: slots of [k, v] or of one of them.
  const int64_t width = heads * hd;
  float* first = args.k_shift.tail != nullptr ? args.k_shift.tail : args.v_shift.tail;
  if (first != nullptr) {
    const int64_t stride = std::max(args.k_shift.tail_stride, args.v_shift.tail_stride);
    const int64_t extent = (ragged.slots() - 1) * stride +
                           (args.k_shift.tail != nullptr && args.v_shift.tail != nullptr
                                ? args.v_shift.tail - args.k_shift.tail
                                : 0) +
                           width;
    float* const tails = session.InOut(first, Floats(extent));
    if (args.k_shift.tail != nullptr) device.k_shift.tail = tails;
    if (args.v_shift.tail != nullptr) device.v_shift.tail = tails + (args.v_shift.tail - first);
  }
  device.rope_cos = session.In(args.rope_cos, Floats(rope_positions * args.rotary_dims / 2));
  device.rope_sin = session.In(args.rope_sin, Floats(rope_positions * args.rotary_dims / 2));
  device.q_norm = session.In(args.q_norm, Floats(hd));
  device.k_norm = session.In(args.k_norm, Floats(hd));
  const size_t cache = Bytes(args.type, ragged.blocks() * width * args.cache.block_size);
  device.cache.k = session.InOut(args.cache.k, cache);
  device.cache.v = session.InOut(args.cache.v, cache);
  ASSERT_EQ(cuda::AttentionInput(nullptr, batch, device), cuda::kSuccess);
  session.CopyBack();
}

void RunKernel(const Engine& engine, const RaggedBatch& ragged, const PagedAttentionArgs& args) {
  if (engine.where == Where::kCpu) return Cpu().PagedAttention(ragged.batch, args);
  cuda::ChooseSchedule(engine.schedule);
  CudaSession session;
  const Batch batch = In(session, ragged);
  const int64_t width = args.heads * args.head_dim, tokens = batch.tokens;
  PagedAttentionArgs device = args;
  device.q = session.In(args.q, Bytes(args.type, (tokens - 1) * args.q_stride + width));
  const size_t cache = Bytes(args.type, ragged.blocks() * width * args.cache.block_size);
  device.cache.k = session.In(args.cache.k, cache);
  device.cache.v = session.In(args.cache.v, cache);
  device.norm_weight = session.In(args.norm_weight, Floats(args.head_dim));
  device.gate = session.In(args.gate, Bytes(args.type, tokens * width));
  device.y = session.InOut(args.y, Bytes(args.type, tokens * width));
  const int64_t longest = *std::max_element(ragged.position.begin(), ragged.position.end()) + 1;
  std::vector<float> workspace(cuda::PagedAttentionWorkspaceFloats(tokens, device, longest));
  float* const device_workspace =
      workspace.empty() ? nullptr : session.In(workspace.data(), Floats(workspace.size()));
  std::vector<int32_t> arrivals(workspace.empty() ? 0 : tokens * args.heads);
  int32_t* const device_arrivals =
      arrivals.empty() ? nullptr : session.InOut(arrivals.data(), 4 * arrivals.size());
  ASSERT_EQ(
      cuda::PagedAttention(nullptr, batch, device, longest, device_workspace, device_arrivals),
      cuda::kSuccess);
  session.CopyBack();
  ASSERT_EQ(arrivals, std::vector<int32_t>(arrivals.size())) << "left as they were found";
}

void RunKernel(const Engine& engine, int64_t tokens, const SwiGluArgs& args) {
  if (engine.where == Where::kCpu) return Cpu().SwiGlu(RowsAlone(tokens), args);
  cuda::ChooseSchedule(engine.schedule);
  CudaSession session;
  SwiGluArgs device = args;
  device.ab = session.In(args.ab, Bytes(args.type, tokens * 2 * args.m));
  device.y = session.InOut(args.y, Bytes(args.type, tokens * args.m));
  ASSERT_EQ(cuda::SwiGlu(nullptr, tokens, device), cuda::kSuccess);
  session.CopyBack();
}

}  // namespace ddl::kernels
