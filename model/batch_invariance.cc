#include "model/batch_invariance.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/kernels/packed_batch.h"

namespace ddl {
namespace {

using at::Tensor;

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};

// More rows than any kernel takes as few, and an odd number; more outputs than two panels of a
// packed weight, the last of them part of one.
constexpr int64_t kRows = 67;
constexpr int64_t kOutputs = 101;
// Alone; fewer than a tile of rows; more; more than two.
constexpr Range kRanges[] = {{0, 1}, {33, 34}, {66, 67}, {3, 8}, {20, 37}, {1, 34}};

Tensor Random(at::IntArrayRef sizes, uint32_t seed, const at::TensorOptions& options) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(
      std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>())));
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  return at::tensor(values).view(sizes).to(options);
}

// The first element in which two contiguous tensors of one shape differ in a bit; -1: none.
int64_t FirstDifference(const Tensor& a, const Tensor& b) {
  const auto* const a_bytes = static_cast<const char*>(a.const_data_ptr());
  const auto* const b_bytes = static_cast<const char*>(b.const_data_ptr());
  const auto size = static_cast<int64_t>(a.element_size());
  for (int64_t i = 0; i < a.numel(); ++i) {
    if (std::memcmp(a_bytes + i * size, b_bytes + i * size, a.element_size()) != 0) return i;
  }
  return -1;
}

// Rows of some sequences that are computed together.
struct Chunk {
  int32_t sequence = 0;
  int32_t begin = 0;
  int32_t end = 0;
};

class AttentionTrial {
 public:
  AttentionTrial(const Device& device, const AttentionShape& shape,
                 const at::TensorOptions& options)
      : device_(device), shape_(shape), options_(options) {
    for (const int32_t length : kLengths) {
      stride_ = std::max(stride_, (length + shape.block_size - 1) / shape.block_size);
    }
    const int64_t blocks = stride_ * kSequences;
    q_ = Random({kSequences, kLengths[kSequences - 1], Width()}, 1, options);
    k_ = Random({blocks, shape.heads, shape.head_dim, shape.block_size}, 2, options);
    v_ = Random({blocks, shape.heads, shape.block_size, shape.head_dim}, 3, options);
  }

  std::string FindDependence() const {
    const std::vector<Chunk> all = {{0, 0, kLengths[0]}, {1, 0, kLengths[1]}, {2, 0, kLengths[2]}};
    const std::vector<Tensor> expected = Attend(all);
    const std::vector<Chunk> batches[] = {{all[0]},
                                          {all[1]},
                                          {all[2]},
                                          {{2, 69, 70}},
                                          {{1, 0, 1}},
                                          {{0, 2, 3}, {1, 34, 35}, {2, 69, 70}},
                                          {{1, 3, 8}, {2, 17, 34}},
                                          {{2, 1, 70}}};
    for (const std::vector<Chunk>& batch : batches) {
      const std::vector<Tensor> found = Attend(batch);
      for (size_t i = 0; i < batch.size(); ++i) {
        const Chunk& chunk = batch[i];
        const Tensor rows =
            expected[chunk.sequence].narrow(0, chunk.begin, chunk.end - chunk.begin);
        const int64_t difference = FirstDifference(rows, found[i]);
        if (difference < 0) continue;
        return absl::StrCat("position ", chunk.begin + difference / Width(), " of ",
                            kLengths[chunk.sequence], " has other bits in positions ", chunk.begin,
                            "...", chunk.end - 1, " of ", batch.size(), " of ", kSequences,
                            " sequences");
      }
    }
    return "";
  }

 private:
  static constexpr int32_t kLengths[] = {3, 35, 70};
  static constexpr int64_t kSequences = std::size(kLengths);

  int64_t Width() const { return shape_.heads * shape_.head_dim; }

  // [chunk's rows, heads * head_dim] of each, in host memory.
  std::vector<Tensor> Attend(const std::vector<Chunk>& chunks) const {
    kernels::PackedBatch packed(stride_);
    std::vector<Tensor> q;
    for (const Chunk& chunk : chunks) {
      std::vector<int32_t> blocks;
      for (int64_t block = 0; block < stride_; ++block) {  // not in the order of memory
        blocks.push_back(static_cast<int32_t>((block + 1) * kSequences - 1 - chunk.sequence));
      }
      packed.AddSequence(chunk.sequence, blocks);
      for (int32_t row = chunk.begin; row < chunk.end; ++row) packed.AddRow(row);
      q.push_back(q_[chunk.sequence].narrow(0, chunk.begin, chunk.end - chunk.begin));
    }
    const kernels::Batch batch = packed.batch();
    const std::vector<int32_t> ids(batch.tokens, 0);
    const StepInput input = device_.Upload(batch, {.ids = ids, .from = {}, .to = {}});

    const Tensor rows = at::cat(q);
    const Tensor y = at::empty_like(rows);
    kernels::PagedAttentionArgs args;
    args.type = options_.dtype() == at::kFloat ? kernels::Type::kFloat32 : kernels::Type::kBFloat16;
    args.heads = shape_.heads;
    args.head_dim = shape_.head_dim;
    args.q = rows.const_data_ptr();
    args.q_stride = Width();
    args.cache = {k_.data_ptr(), v_.data_ptr(), shape_.block_size};
    args.y = y.data_ptr();
    device_.kernels().PagedAttention(input.batch, args);
    const Tensor result = y.to(at::kCPU);
    std::vector<Tensor> parts;
    for (size_t i = 0; i < chunks.size(); ++i) {
      parts.push_back(result.narrow(0, batch.row_begin[i], chunks[i].end - chunks[i].begin));
    }
    return parts;
  }

  const Device& device_;
  const AttentionShape shape_;
  const at::TensorOptions options_;
  int64_t stride_ = 0;  // blocks of a sequence
  Tensor q_;            // [sequences, longest, heads * head_dim]
  Tensor k_, v_;        // as kernels::KvCache has them
};

}  // namespace

std::string FindBatchDependence(const Linear& linear, const at::TensorOptions& options) {
  const Linear first = linear.FirstOutputs(kOutputs);
  const Tensor x = Random({kRows, first.in_features()}, 1, options);
  const auto product = [&](const Range& rows) {
    return first.ToFloat(x.narrow(0, rows.begin, rows.end - rows.begin)).to(at::kCPU);
  };
  const Tensor expected = product({0, kRows});
  for (const Range& range : kRanges) {
    const int64_t rows = range.end - range.begin;
    const int64_t difference =
        FirstDifference(expected.narrow(0, range.begin, rows), product(range));
    if (difference < 0) continue;
    return absl::StrCat("row ", range.begin + difference / first.out_features(), " of ", kRows,
                        " has other bits in rows ", range.begin, "...", range.end - 1,
                        " alone, output ", difference % first.out_features());
  }
  return "";
}

std::string FindBatchDependence(const Device& device, const AttentionShape& shape,
                                const at::TensorOptions& options) {
  return AttentionTrial(device, shape, options).FindDependence();
}

}  // namespace ddl
