// Attention over packed sequences on a CUDA device: how a batch is taken apart, what the device's
// flash attention is asked to mean, and the whole of it beside attention in place. On the host over
// the device's twin; on a GPU over LibTorch.

#include "model/device/cuda/attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "model/device/cuda/runtime.h"
#include "model/device/device.h"
#include "model/kernels/packed_batch.h"
#include "tests/model/device/tested_device.h"

namespace ddl {
namespace {

using kernels::AttentionRun;

// {first position, rows} of each sequence.
using Sequences = std::vector<std::pair<int, int>>;

// A batch with blocks that no two sequences share, in no order.
kernels::PackedBatch Pack(const Sequences& sequences, int64_t block_size = 4) {
  int64_t stride = 0;
  for (const auto& [start, rows] : sequences) {
    stride = std::max<int64_t>(stride, (start + rows + block_size - 1) / block_size);
  }
  std::vector<int32_t> blocks(sequences.size() * stride);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(5));
  kernels::PackedBatch packed(stride);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto& [start, rows] = sequences[s];
    packed.AddSequence(static_cast<int32_t>(s),
                       absl::MakeConstSpan(blocks).subspan(s * stride, stride));
    for (int i = 0; i < rows; ++i) packed.AddRow(start + i);
  }
  return packed;
}

std::string Text(const std::vector<AttentionRun>& runs) {
  std::string text;
  for (const AttentionRun& run : runs) {
    text += (run.gathered ? "gathered" : "in place");
    for (const int64_t n : {run.first_row, run.rows, run.first_sequence, run.sequences,
                            run.most_rows, run.longest, run.positions}) {
      text.append(" ").append(std::to_string(n));
    }
    text += "; ";
  }
  return text;
}

TEST(CudaAttentionTest, PlanTakesABatchApart) {
  struct Row {
    std::string name;
    Sequences sequences;
    std::string runs;  // first row, rows, first sequence, sequences, most rows, longest, positions
    std::vector<int32_t> begins;
  };
  const std::vector<Row> rows = {
      {"decodes", {{9, 1}, {0, 1}}, "", {}},
      {"too few rows", {{9, 3}, {0, 3}}, "", {}},
      {"as few as can be", {{9, 4}}, "gathered 0 4 0 1 4 13 13; ", {0, 4, 0, 13}},
      {"a prompt, a decode",
       {{0, 6}, {7, 1}},
       "gathered 0 6 0 1 6 6 6; in place 6 1 1 1 1 8 8; ",
       {0, 6, 0, 6}},
      {"decodes, prompts, a decode",
       {{3, 1}, {5, 2}, {0, 5}, {2, 4}, {1, 1}},
       "in place 0 3 0 2 2 7 11; gathered 3 9 2 2 5 6 11; in place 12 1 4 1 1 2 2; ",
       {0, 5, 9, 0, 5, 11}},
      // 12 rows, of which none is at a position past 8.
      {"as many positions as rows",
       {{0, 4}, {4, 4}, {0, 4}},
       "gathered 0 8 0 2 4 8 12; gathered 8 4 2 1 4 4 4; ",
       {0, 4, 8, 0, 4, 12, 0, 4, 0, 4}},
      {"each longer than the rows of all",
       {{96, 4}, {96, 4}},
       "gathered 0 4 0 1 4 100 100; gathered 4 4 1 1 4 100 100; ",
       {0, 4, 0, 100, 0, 4, 0, 100}},
  };
  for (const Row& row : rows) {
    const kernels::PackedBatch packed = Pack(row.sequences);
    const kernels::AttentionPlan plan = MakeAttentionPlan(packed.batch());
    EXPECT_EQ(Text(plan.runs), row.runs) << row.name;
    EXPECT_EQ(plan.begins, row.begins) << row.name;
    for (const AttentionRun& run : plan.runs) {
      EXPECT_TRUE(!run.gathered || run.positions <= GatheredPositions(packed.batch())) << row.name;
    }
  }
}

at::Tensor RandomTensor(std::mt19937& random, at::IntArrayRef sizes, float scale,
                        const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(sizes, at::kFloat);
  std::normal_distribution<float> normal(0.0f, scale);
  for (int64_t i = 0; i < tensor.numel(); ++i) tensor.data_ptr<float>()[i] = normal(random);
  return tensor.to(options);
}

std::vector<float> Floats(const at::Tensor& tensor) {
  const at::Tensor floats = tensor.to(at::kCPU, at::kFloat).contiguous();
  const float* const data = floats.const_data_ptr<float>();
  return std::vector<float>(data, data + floats.numel());
}

// The mask is aligned to the last row and the last position, and the scale is 1 / sqrt(hd): both
// are what LibTorch's operator does, not what its name says.
TEST(CudaAttentionTest, FlashAttentionEqualsNaiveLoops) {
  TestedDevice();
  const c10::InferenceMode inference_mode;
  const at::TensorOptions options =
      at::TensorOptions().dtype(at::kBFloat16).device(cuda_runtime::Open().value());
  struct Row {
    std::string name;
    int64_t heads, head_dim;
    Sequences sequences;
  };
  const std::vector<Row> rows = {
      {"whole", 2, 128, {{0, 17}}},
      {"one row", 2, 64, {{40, 1}}},
      {"the end of a context", 1, 128, {{200, 5}}},
      {"several", 3, 64, {{0, 4}, {130, 7}, {1, 130}, {0, 1}}},
      {"a small head", 2, 8, {{3, 9}}},
      {"the largest head", 1, 256, {{64, 66}}},
      {"a head between", 1, 40, {{5, 9}, {0, 33}}},
  };
  std::mt19937 random(11);
  for (const Row& row : rows) {
    ASSERT_TRUE(cuda_runtime::HasFlashAttention(at::kBFloat16, row.head_dim)) << row.name;
    std::vector<int32_t> row_begin = {0}, position_begin = {0};
    int64_t most_rows = 0, longest = 0;
    for (const auto& [start, count] : row.sequences) {
      row_begin.push_back(row_begin.back() + count);
      position_begin.push_back(position_begin.back() + start + count);
      most_rows = std::max<int64_t>(most_rows, count);
      longest = std::max<int64_t>(longest, start + count);
    }
    const int64_t heads = row.heads, hd = row.head_dim;
    // q as the model has it: one of three in a row.
    const at::Tensor qkv = RandomTensor(random, {row_begin.back(), 3, heads, hd}, 1.4f, options);
    const at::Tensor q = qkv.select(1, 0);
    const at::Tensor k = RandomTensor(random, {position_begin.back(), heads, hd}, 1.0f, options);
    const at::Tensor v = RandomTensor(random, {position_begin.back(), heads, hd}, 1.0f, options);
    const at::Tensor attended = cuda_runtime::FlashAttention(
        q, k, v, at::tensor(row_begin, at::kInt).to(options.device()),
        at::tensor(position_begin, at::kInt).to(options.device()), most_rows, longest);
    ASSERT_EQ(attended.sizes(), q.sizes()) << row.name;
    ASSERT_TRUE(attended.is_contiguous()) << row.name;
    const std::vector<float> found = Floats(attended), q_values = Floats(q), k_values = Floats(k),
                             v_values = Floats(v);
    for (size_t s = 0; s < row.sequences.size(); ++s) {
      const auto [start, count] = row.sequences[s];
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t head = 0; head < heads; ++head) {
          const auto at = [&](int32_t begin, int64_t n) {
            return ((begin + n) * heads + head) * hd;
          };
          std::vector<double> weight(start + t + 1), want(hd);
          double total = 0.0;
          for (int64_t p = 0; p <= start + t; ++p) {
            for (int64_t n = 0; n < hd; ++n) {
              weight[p] += static_cast<double>(q_values[at(row_begin[s], t) + n]) *
                           k_values[at(position_begin[s], p) + n];
            }
            total += weight[p] = std::exp(weight[p] / std::sqrt(static_cast<double>(hd)));
          }
          for (int64_t p = 0; p <= start + t; ++p) {
            for (int64_t n = 0; n < hd; ++n) {
              want[n] += weight[p] / total * v_values[at(position_begin[s], p) + n];
            }
          }
          for (int64_t n = 0; n < hd; ++n) {
            ASSERT_NEAR(found[at(row_begin[s], t) + n], want[n], 1e-2 * (1.0 + std::abs(want[n])))
                << row.name << ": sequence " << s << ", row " << t << ", head " << head;
          }
        }
      }
    }
  }
}

// One batch with and without its plan.
TEST(CudaAttentionTest, GatheredEqualsInPlace) {
  TestedDevice();
  const c10::InferenceMode inference_mode;
  const auto device = MakeCudaDevice();
  ASSERT_TRUE(device.ok()) << device.status();
  struct Row {
    std::string name;
    int64_t heads, head_dim, block_size;
    bool norm, gate;
    Sequences sequences;
  };
  const std::vector<Row> rows = {
      {"a prompt", 2, 16, 4, false, false, {{0, 9}}},
      {"decodes, prompts, a decode", 2, 16, 4, false, false, {{3, 1}, {0, 5}, {2, 4}, {1, 1}}},
      {"several gathers", 1, 64, 16, false, false, {{30, 4}, {28, 5}, {0, 6}}},
      {"norm and gate", 3, 8, 5, true, true, {{7, 4}, {3, 2}, {260, 6}}},
  };
  std::mt19937 random(12);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::TensorOptions options = at::TensorOptions().dtype(type).device((*device)->tensors());
    for (const Row& row : rows) {
      const kernels::PackedBatch packed = Pack(row.sequences, row.block_size);
      const kernels::Batch host_batch = packed.batch();
      const int64_t heads = row.heads, hd = row.head_dim, tokens = host_batch.tokens;
      const int64_t blocks = host_batch.sequences * host_batch.block_table_stride;
      const at::Tensor qkv = RandomTensor(random, {tokens, 3, heads, hd}, 2.0f, options);
      const at::Tensor k = RandomTensor(random, {blocks, heads, hd, row.block_size}, 1.0f, options);
      const at::Tensor v = RandomTensor(random, {blocks, heads, row.block_size, hd}, 1.0f, options);
      const at::Tensor gate = RandomTensor(random, {tokens, heads, hd}, 1.0f, options);
      const at::Tensor norm = RandomTensor(random, {hd}, 1.0f, options.dtype(at::kFloat));
      const at::Tensor nothing = at::full({tokens, heads, hd}, NAN, options);
      kernels::PagedAttentionArgs args;
      args.type = type == at::kFloat ? kernels::Type::kFloat32 : kernels::Type::kBFloat16;
      args.heads = heads;
      args.head_dim = hd;
      args.q = qkv.const_data_ptr();
      args.q_stride = 3 * heads * hd;
      args.cache = {k.data_ptr(), v.data_ptr(), row.block_size};
      args.norm_weight = row.norm ? norm.const_data_ptr<float>() : nullptr;
      args.norm_eps = 0.05f;
      args.gate = row.gate ? gate.const_data_ptr() : nullptr;
      const StepInput input = (*device)->Upload(host_batch, {});
      ASSERT_NE(input.batch.attention_plan, nullptr) << row.name;
      std::vector<std::vector<float>> y;
      for (const bool planned : {true, false}) {
        const at::Tensor out = nothing.clone();
        kernels::Batch batch = input.batch;
        if (!planned) batch.attention_plan = nullptr;
        args.y = out.data_ptr();
        CudaAttention((*device)->tensors()).Run(batch, args);
        y.push_back(Floats(out));
      }
      const double tolerance = type == at::kFloat ? 1e-5 : 3e-2;
      for (size_t i = 0; i < y[0].size(); ++i) {
        ASSERT_NEAR(y[0][i], y[1][i], tolerance * (1.0 + std::abs(y[1][i])))
            << row.name << ", element " << i;
      }
    }
  }
}

}  // namespace
}  // namespace ddl
