// AttentionInput and PagedAttention: the CPU's twin and the CUDA source against naive loops in
// double precision, and against themselves in other batches and chunks.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "model/kernels/cuda/cuda_kernels.h"
#include "tests/model/kernels/cuda/engine.h"
#include "tests/model/kernels/cuda/session.h"
#include "tests/model/kernels/naive_kernels.h"
#include "tests/model/kernels/sublayer_calls.h"

namespace ddl::kernels {
namespace {

class CudaAttentionTest : public CudaKernelTest {
 protected:
  // The CPU may round weights to bfloat16 before they meet V.
  void ExpectAttended(const std::vector<float>& found, const std::vector<double>& want,
                      const std::string& what) const {
    if (engine().where == Where::kCpu) return ExpectCloseAttention(found, want, type(), what);
    ExpectClose(found, want, type(), what);
  }
};

TEST_P(CudaAttentionTest, InputThenAttentionEqualsNaiveLoops) {
  // Positions 0...length-1 are filled by a first call, the rest by a second, where for one
  // layer in two every sequence has one row.
  const std::vector<std::pair<int, int>> first = {{0, 1}, {0, 17}, {0, 4}};
  const std::vector<std::pair<int, int>> chunks = {{1, 3}, {17, 1}, {4, 29}};
  const std::vector<std::pair<int, int>> decode = {{1, 1}, {17, 1}, {4, 1}};
  constexpr int64_t kPositions = 64;
  for (const AttentionCase& options : AttentionCases()) {
    for (const auto& second : {chunks, decode}) {
      const int64_t heads = options.heads, hd = options.head_dim;
      const RaggedBatch shape(first, options.block_size, kPositions);
      AttentionLayer layer(random_, options, type(), /*d=*/45, shape, kPositions, 0.3f);
      NaiveAttention naive(std::ssize(first));
      for (const auto& part : {first, second}) {
        const RaggedBatch ragged(part, options.block_size, kPositions);
        const int64_t tokens = ragged.batch.tokens;
        AttentionCall call(random_, layer, tokens);
        RunKernel(engine(), ragged, kPositions, call.input);
        const std::vector<float> q_found = call.qkv.Floats();
        const std::vector<float> k_found = layer.k_cache.Floats(), v_found = layer.v_cache.Floats();
        RunKernel(engine(), ragged, call.attention);
        const NaiveAttention::Result want =
            naive.Next(ragged, call.input, call.attention, call.qkv_before, call.c, call.gate);
        std::vector<float> q, k, v;
        for (int64_t t = 0; t < tokens; ++t) {
          const int64_t position = ragged.position[t], bs = options.block_size;
          const int64_t block =
              ragged.block_table[ragged.row_sequence[t] * ragged.batch.block_table_stride +
                                 position / bs];
          for (int64_t head = 0; head < heads; ++head) {
            const int64_t base = (block * heads + head) * bs * hd;
            for (int64_t n = 0; n < hd; ++n) {
              q.push_back(q_found[(t * 3 * heads + head) * hd + n]);
              k.push_back(k_found[base + n * bs + position % bs]);
              v.push_back(v_found[base + position % bs * hd + n]);
            }
          }
        }
        ExpectClose(q, want.q, type(), options.name + ": q");
        ExpectClose(k, want.k, type(), options.name + ": k");
        ExpectClose(v, want.v, type(), options.name + ": v");
        ExpectCloseAttention(call.y.Floats(), want.y, type(), options.name + ": y");
      }
    }
  }
}

// A cache that is full of keys and values, and a q whose scores are far from equal.
struct Context {
  int64_t heads, head_dim, block_size, positions;
  std::vector<float> k, v, q;          // [positions, H, hd], [positions, H, hd], [positions, H, hd]
  int64_t k_offset = 0, v_offset = 0;  // elements that they start past a multiple of 16 bytes
};

// y of rows at `rows` (positions) of one sequence, beside `others` rows at position 2.
std::vector<float> Attend(const Engine& engine, Type type, const Context& context,
                          const std::vector<int>& rows, int others) {
  const int64_t heads = context.heads, hd = context.head_dim, bs = context.block_size;
  const int64_t width = heads * hd;
  std::vector<std::pair<int, int>> sequences(others, {2, 1});
  for (const int row : rows) sequences.push_back({row, 1});
  RaggedBatch ragged(sequences, bs, context.positions);
  const int64_t stride = ragged.batch.block_table_stride;
  // All rows of ours share one sequence's blocks, the last first, so that order shows.
  const int64_t size = ragged.blocks() * bs * width;
  std::vector<float> k(context.k_offset + size, NAN), v(context.v_offset + size, NAN);
  for (int64_t p = 0; p < context.positions; ++p) {
    const int64_t block = stride - 1 - p / bs;
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t n = 0; n < hd; ++n) {
        const float k_value = context.k[(p * heads + head) * hd + n];
        const float v_value = context.v[(p * heads + head) * hd + n];
        k[context.k_offset + ((block * heads + head) * hd + n) * bs + p % bs] = k_value;
        v[context.v_offset + ((block * heads + head) * bs + p % bs) * hd + n] = v_value;
      }
    }
  }
  for (int64_t s = 0; s < ragged.batch.sequences; ++s) {
    for (int64_t b = 0; b < stride; ++b) {
      ragged.block_table[s * stride + b] = static_cast<int32_t>(stride - 1 - b);
    }
  }
  const int64_t tokens = ragged.batch.tokens;
  std::vector<float> q(tokens * width, 0.5f);
  for (size_t n = 0; n < rows.size(); ++n) {
    std::copy(context.q.begin() + rows[n] * width, context.q.begin() + (rows[n] + 1) * width,
              q.begin() + (others + n) * width);
  }
  Buffer k_cache(type, k), v_cache(type, v), q_buffer(type, q), y(type, tokens * width);
  PagedAttentionArgs args;
  args.type = type;
  args.heads = heads;
  args.head_dim = hd;
  args.q = q_buffer.data();
  args.q_stride = width;
  const int64_t element = type == Type::kFloat32 ? 4 : 2;
  args.cache = {static_cast<unsigned char*>(k_cache.data()) + context.k_offset * element,
                static_cast<unsigned char*>(v_cache.data()) + context.v_offset * element, bs};
  args.y = y.data();
  RunKernel(engine, ragged, args);
  const std::vector<float> all = y.Floats();
  return std::vector<float>(all.begin() + others * width, all.end());
}

Context MakeContext(Random& random, Type type, int64_t heads, int64_t head_dim, int64_t block_size,
                    int64_t positions) {
  const int64_t size = positions * heads * head_dim;
  return {heads,
          head_dim,
          block_size,
          positions,
          random.Values(size, 1.0f, type),
          random.Values(size, 1.0f, type),
          random.Values(size, 3.0f / std::sqrt(std::sqrt(static_cast<float>(head_dim))), type)};
}

std::vector<double> NaiveAttend(const Context& context, const std::vector<int>& rows) {
  const int64_t hd = context.head_dim;
  std::vector<double> want;
  for (const int row : rows) {
    for (int64_t head = 0; head < context.heads; ++head) {
      const auto at = [&](int64_t p) { return (p * context.heads + head) * hd; };
      std::vector<double> weight(row + 1), out(hd, 0.0);
      double largest = -INFINITY, total = 0.0;
      for (int p = 0; p <= row; ++p) {
        for (int64_t n = 0; n < hd; ++n) {
          weight[p] += double(context.q[at(row) + n]) * context.k[at(p) + n];
        }
        weight[p] /= std::sqrt(static_cast<double>(hd));
        largest = std::max(largest, weight[p]);
      }
      for (double& w : weight) total += w = std::exp(w - largest);
      for (int p = 0; p <= row; ++p) {
        for (int64_t n = 0; n < hd; ++n) out[n] += weight[p] / total * context.v[at(p) + n];
      }
      want.insert(want.end(), out.begin(), out.end());
    }
  }
  return want;
}

// Contexts around tiles and splits.
TEST_P(CudaAttentionTest, LongContextsEqualNaiveLoops) {
  constexpr auto kSplit = static_cast<int>(cuda::kPositionsPerSplit);
  const std::vector<int> lengths = {1,
                                    2,
                                    127,
                                    128,
                                    129,
                                    kSplit - 1,
                                    kSplit,
                                    kSplit + 1,
                                    kSplit + 129,
                                    2 * kSplit,
                                    2 * kSplit + 1,
                                    3 * kSplit - 3};
  std::vector<int> rows;
  for (const int length : lengths) rows.push_back(length - 1);
  struct Shape {
    int64_t head_dim, block_size, k_offset, v_offset;
  };
  for (const Shape& shape : std::vector<Shape>{{128, 16, 0, 0},
                                               {64, 8, 0, 0},
                                               {33, 16, 0, 0},
                                               {40, 5, 0, 0},
                                               {7, 33, 0, 0},
                                               // Heads of the models that no pack of 16 bytes fits.
                                               {64, 12, 0, 0},
                                               {64, 16, 1, 0},
                                               {64, 16, 0, 1}}) {
    Context context = MakeContext(random_, type(), 2, shape.head_dim, shape.block_size, 4 * kSplit);
    context.k_offset = shape.k_offset;
    context.v_offset = shape.v_offset;
    const std::vector<float> found = Attend(engine(), type(), context, rows, 1);
    ExpectAttended(found, NaiveAttend(context, rows),
                   "hd " + std::to_string(shape.head_dim) + " block_size " +
                       std::to_string(shape.block_size) + " K sliced by " +
                       std::to_string(shape.k_offset) + " V by " + std::to_string(shape.v_offset));
    if (HasFatalFailure()) return;
  }
}

// Splits grow with the context, and then have several tiles.
TEST_P(CudaAttentionTest, ContextsOfMoreThanTheMostSplits) {
  constexpr auto kMost = static_cast<int>(cuda::kPositionsPerSplit * cuda::kMaxSplits);
  const std::vector<int> rows = {kMost - 2,   kMost - 1,     kMost,
                                 kMost + 129, 2 * kMost - 1, 2 * kMost};
  for (const int64_t hd : {64, 24}) {
    const Context context = MakeContext(random_, type(), 1, hd, 16, 2 * kMost + 16);
    const std::vector<float> found = Attend(engine(), type(), context, rows, 1);
    ExpectAttended(found, NaiveAttend(context, rows), "hd " + std::to_string(hd));
    if (HasFatalFailure()) return;
  }
}

TEST_P(CudaAttentionTest, BitsDependOnTheRowAlone) {
  constexpr auto kSplit = static_cast<int>(cuda::kPositionsPerSplit);
  const std::vector<int> rows = {0, 30, kSplit - 1, kSplit, 2 * kSplit - 1, 2 * kSplit + 5};
  for (const int64_t hd : {32, 64}) {
    const Context context = MakeContext(random_, type(), 1, hd, 16, 2 * kSplit + 16);
    const std::vector<float> together = Attend(engine(), type(), context, rows, 3);
    for (size_t n = 0; n < rows.size(); ++n) {
      // Alone, a short row has no workspace; beside a long one, blocks past its end.
      const std::vector<float> alone = Attend(engine(), type(), context, {rows[n]}, 0);
      EXPECT_EQ(std::memcmp(alone.data(), together.data() + n * hd, hd * sizeof(float)), 0)
          << "hd " << hd << ", position " << rows[n];
    }
  }
}

// Shifts that go on from another slot and leave their tails by row.
TEST_P(CudaAttentionTest, ShiftTailsByRow) {
  constexpr int64_t kHeads = 2, kHeadDim = 24, kWidth = kHeads * kHeadDim, kD = 5;
  for (const auto& sequences :
       std::vector<std::vector<std::pair<int, int>>>{{{0, 3}, {4, 1}, {7, 4}}, {{2, 1}, {0, 1}}}) {
    RaggedBatch ragged(sequences, 8, 16);
    ragged.SaveTailsByRow();
    const int64_t tokens = ragged.batch.tokens;
    const std::vector<float> qkv = random_.Values(tokens * 3 * kWidth, 1.0f, type());
    Buffer qkv_buffer(type(), qkv);
    Buffer c(type(), std::vector<float>(tokens * kD, 0.0f));  // so alpha is a half
    const std::vector<float> weight(kHeads * kD, 1.0f);
    std::vector<float> tails = random_.Values(ragged.slots() * 2 * kWidth, 1.0f);
    const std::vector<float> before = tails;
    const std::vector<float> empty(ragged.blocks() * kWidth * 8, 0.0f);
    Buffer k_cache(type(), empty), v_cache(type(), empty);
    AttentionInputArgs args;
    args.type = type();
    args.d = kD;
    args.heads = kHeads;
    args.head_dim = kHeadDim;
    args.c = c.data();
    args.qkv = qkv_buffer.data();
    args.k_shift = {weight.data(), tails.data(), 2 * kWidth};
    args.v_shift = {weight.data(), tails.data() + kWidth, 2 * kWidth};
    args.cache = {k_cache.data(), v_cache.data(), 8};
    RunKernel(engine(), ragged, 16, args);

    std::vector<float> want_tails = before;
    const std::vector<float> v_found = v_cache.Floats();
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t s = ragged.row_sequence[t];
      const auto o = [&](int64_t row, int64_t n) { return qkv[row * 3 * kWidth + kWidth + n]; };
      const auto leave = [&](int64_t slot) {
        for (int64_t n = 0; n < 2 * kWidth; ++n) want_tails[slot * 2 * kWidth + n] = o(t, n);
      };
      if (t + 1 == ragged.row_begin[s + 1]) leave(ragged.slot[s]);
      if (ragged.row_save[t] >= 0) leave(ragged.row_save[t]);
      const int64_t position = ragged.position[t];
      const int64_t block = ragged.block_table[s * ragged.batch.block_table_stride + position / 8];
      for (int64_t n = 0; n < kWidth; ++n) {
        double previous = 0.0;
        if (position > 0) {
          previous = t > ragged.row_begin[s]
                         ? o(t - 1, kWidth + n)
                         : before[ragged.tail_source[s] * 2 * kWidth + kWidth + n];
        }
        const double want = 0.5 * previous + 0.5 * o(t, kWidth + n);
        const int64_t at =
            (block * kWidth + n / kHeadDim * kHeadDim) * 8 + position % 8 * kHeadDim + n % kHeadDim;
        ASSERT_NEAR(v_found[at], want, 1e-5 + std::abs(want) / 256) << "row " << t << " " << n;
      }
    }
    EXPECT_EQ(tails, want_tails);
  }
}

// k, v and tails of a sequence of 9 rows: whole, one at a time, in chunks.
TEST_P(CudaAttentionTest, InputBitsDependOnNeitherBatchNorChunks) {
  constexpr int64_t kTokens = 9, kHeads = 2, kHeadDim = 24, kWidth = kHeads * kHeadDim, kD = 33;
  const std::vector<float> qkv = random_.Values(kTokens * 3 * kWidth, 1.0f, type());
  const std::vector<float> c = random_.Values(kTokens * kD, 1.0f, type());
  const std::vector<float> weight = random_.Values(kHeads * kD, 0.3f);
  const std::vector<float> norm = random_.Values(kHeadDim, 1.0f);
  const std::vector<float> rope = random_.Values(16 * kHeadDim / 2, 1.0f);
  const auto run = [&](int64_t chunk) {
    const RaggedBatch shape({{0, static_cast<int>(kTokens)}}, 8, 16);
    const std::vector<float> empty(shape.blocks() * kWidth * 8, 0.0f);
    Buffer k_cache(type(), empty), v_cache(type(), empty);
    std::vector<float> tails(shape.slots() * 2 * kWidth, NAN), result;
    for (int64_t begin = 0; begin < kTokens; begin += chunk) {
      const int64_t rows = std::min(chunk, kTokens - begin);
      const RaggedBatch ragged({{static_cast<int>(begin), static_cast<int>(rows)}}, 8, 16);
      const auto part = [&](const std::vector<float>& values, int64_t width) {
        return std::vector<float>(values.begin() + begin * width,
                                  values.begin() + (begin + rows) * width);
      };
      Buffer qkv_part(type(), part(qkv, 3 * kWidth)), c_part(type(), part(c, kD));
      AttentionInputArgs args;
      args.type = type();
      args.d = kD;
      args.heads = kHeads;
      args.head_dim = kHeadDim;
      args.c = c_part.data();
      args.qkv = qkv_part.data();
      args.k_shift = {weight.data(), tails.data(), 2 * kWidth};
      args.v_shift = {weight.data(), tails.data() + kWidth, 2 * kWidth};
      args.rotary_dims = kHeadDim;
      args.rope_cos = args.rope_sin = rope.data();
      args.q_norm = args.k_norm = norm.data();
      args.norm_eps = 1e-5f;
      args.cache = {k_cache.data(), v_cache.data(), 8};
      RunKernel(engine(), ragged, 16, args);
      const std::vector<float> out = qkv_part.Floats();
      result.insert(result.end(), out.begin(), out.end());
    }
    for (const Buffer* cache : {&k_cache, &v_cache}) {
      const std::vector<float> values = cache->Floats();
      result.insert(result.end(), values.begin(), values.end());
    }
    result.insert(result.end(), tails.begin() + 2 * kWidth, tails.begin() + 4 * kWidth);
    return result;
  };
  const std::vector<float> whole = run(kTokens);
  for (const int64_t chunk : {1, 2, 4}) {
    const std::vector<float> found = run(chunk);
    ASSERT_EQ(found.size(), whole.size());
    EXPECT_EQ(std::memcmp(found.data(), whole.data(), whole.size() * sizeof(float)), 0)
        << "chunks of " << chunk;
  }
}

// Many rows take a kernel that has several of them in a lane.
TEST_P(CudaAttentionTest, InputOfManyRowsHasTheBitsOfFew) {
  const std::vector<std::pair<int, int>> sequences = {{0, 201}, {5, 3}, {37, 61}, {9, 1}};
  constexpr int64_t kHeads = 2, kBlockSize = 16;
  for (const int64_t hd : {64, 128}) {
    const int64_t width = kHeads * hd;
    const std::vector<float> norm = random_.Values(hd, 1.0f);
    const std::vector<float> rope = random_.Values(256 * hd / 2, 1.0f);
    const RaggedBatch all(sequences, kBlockSize, 256);
    const int64_t blocks_of_sequence = all.batch.block_table_stride;
    const std::vector<float> qkv = random_.Values(all.batch.tokens * 3 * width, 1.0f, type());
    // q, K and V of the first `rows` rows of a batch.
    const auto run = [&](const RaggedBatch& ragged, const std::vector<float>& rows) {
      const std::vector<float> empty(ragged.blocks() * width * kBlockSize, 0.0f);
      Buffer k_cache(type(), empty), v_cache(type(), empty), rows_buffer(type(), rows);
      AttentionInputArgs args;
      args.type = type();
      args.d = 8;
      args.heads = kHeads;
      args.head_dim = hd;
      args.c = rows_buffer.data();  // not read without shifts
      args.qkv = rows_buffer.data();
      args.rotary_dims = hd;
      args.rope_cos = args.rope_sin = rope.data();
      args.q_norm = args.k_norm = norm.data();
      args.norm_eps = 1e-5f;
      args.cache = {k_cache.data(), v_cache.data(), kBlockSize};
      RunKernel(engine(), ragged, 256, args);
      return std::vector<std::vector<float>>{rows_buffer.Floats(), k_cache.Floats(),
                                             v_cache.Floats()};
    };
    const auto many = run(all, qkv);
    for (size_t s = 0; s < sequences.size(); ++s) {
      RaggedBatch alone({sequences[s]}, kBlockSize, 256);
      const int64_t first = all.row_begin[s], count = sequences[s].second;
      const std::vector<float> rows(qkv.begin() + first * 3 * width,
                                    qkv.begin() + (first + count) * 3 * width);
      // In a cache of its own, block by block in order.
      for (int64_t b = 0; b < blocks_of_sequence; ++b) {
        alone.block_table[b] = static_cast<int32_t>(b);
      }
      const auto few = run(alone, rows);
      for (int64_t i = 0; i < count * 3 * width; ++i) {
        ASSERT_EQ(few[0][i], many[0][first * 3 * width + i]) << "hd " << hd << ", sequence " << s;
      }
      const int64_t block_elements = width * kBlockSize;
      for (int64_t b = 0; b < blocks_of_sequence; ++b) {
        const int64_t at = all.block_table[s * blocks_of_sequence + b] * block_elements;
        for (int64_t i = 0; i < block_elements; ++i) {
          for (const int cache : {1, 2}) {
            ASSERT_EQ(few[cache][b * block_elements + i], many[cache][at + i])
                << "hd " << hd << ", sequence " << s << ", block " << b;
          }
        }
      }
    }
  }
}

// K and V of whole sequences, position by position; what is beside them stays as it was.
TEST_P(CudaAttentionTest, GatherContext) {
  if (engine().where == Where::kCpu) return;  // the CPU reads blocks where they are
  cuda::ChooseSchedule(engine().schedule);
  struct Row {
    std::string name;
    int64_t heads, head_dim, block_size, offset;  // of the outputs, in elements
    std::vector<int> lengths;
  };
  const std::vector<Row> rows = {
      {"one element", 1, 1, 1, 0, {1}},
      {"no pack", 2, 7, 4, 0, {3, 9, 1}},
      {"packs", 2, 16, 16, 0, {16, 15, 17, 33}},
      {"packs that start late", 2, 16, 16, 1, {16, 15, 17}},
      {"the models'", 1, 128, 16, 0, {31, 32}},
      {"a large block", 3, 8, 64, 0, {65, 1, 64}},
      {"an odd block", 2, 24, 5, 0, {11, 5}},
  };
  const int64_t element = type() == Type::kFloat32 ? 4 : 2;
  for (const Row& row : rows) {
    const int64_t hd = row.head_dim, bs = row.block_size, width = row.heads * hd;
    std::vector<std::pair<int, int>> sequences;
    std::vector<int32_t> begin = {0};
    for (const int length : row.lengths) {
      sequences.emplace_back(0, length);
      begin.push_back(begin.back() + length);
    }
    const RaggedBatch ragged(sequences, bs);
    const int64_t size = ragged.blocks() * width * bs, positions = begin.back();
    const std::vector<float> k = random_.Values(size, 1.0f, type());
    const std::vector<float> v = random_.Values(size, 1.0f, type());
    Buffer k_cache(type(), k), v_cache(type(), v);
    Buffer k_out(type(), positions * width + row.offset);
    Buffer v_out(type(), positions * width + row.offset);
    CudaSession session;
    cuda::GatherContextArgs args;
    args.type = type();
    args.heads = row.heads;
    args.head_dim = hd;
    args.cache = {session.In(k_cache.data(), size * element),
                  session.In(v_cache.data(), size * element), bs};
    args.position_begin = session.In(begin.data(), 4 * begin.size());
    const auto out = [&](Buffer& buffer) {
      return static_cast<unsigned char*>(
                 session.InOut(buffer.data(), (positions * width + row.offset) * element)) +
             row.offset * element;
    };
    args.k = out(k_out);
    args.v = out(v_out);
    ASSERT_EQ(
        cuda::GatherContext(nullptr, ragged.batch.sequences,
                            session.In(ragged.block_table.data(), 4 * ragged.block_table.size()),
                            ragged.batch.block_table_stride,
                            *std::max_element(row.lengths.begin(), row.lengths.end()), args),
        cuda::kSuccess)
        << row.name;
    session.CopyBack();
    std::vector<float> want_k, want_v;
    for (int64_t t = 0; t < positions; ++t) {
      const int64_t s = ragged.row_sequence[t], p = ragged.position[t];
      const int64_t block = ragged.block_table[s * ragged.batch.block_table_stride + p / bs];
      for (int64_t head = 0; head < row.heads; ++head) {
        const int64_t base = (block * row.heads + head) * bs * hd;
        for (int64_t n = 0; n < hd; ++n) {
          want_k.push_back(k[base + n * bs + p % bs]);
          want_v.push_back(v[base + p % bs * hd + n]);
        }
      }
    }
    const std::vector<float> found_k = k_out.Floats(), found_v = v_out.Floats();
    for (int64_t i = 0; i < row.offset; ++i) {
      EXPECT_TRUE(std::isnan(found_k[i]) && std::isnan(found_v[i])) << row.name;
    }
    EXPECT_EQ(std::vector<float>(found_k.begin() + row.offset, found_k.end()), want_k) << row.name;
    EXPECT_EQ(std::vector<float>(found_v.begin() + row.offset, found_v.end()), want_v) << row.name;
    if (HasFailure()) return;
  }
}

TEST_P(CudaAttentionTest, FinishAttention) {
  if (engine().where == Where::kCpu) return;
  cuda::ChooseSchedule(engine().schedule);
  const int64_t element = type() == Type::kFloat32 ? 4 : 2;
  struct Row {
    std::string name;
    int64_t rows, heads, head_dim;
    bool norm, gate;
  };
  const std::vector<Row> rows = {
      {"a copy", 3, 2, 128, false, false}, {"norm", 2, 3, 33, true, false},
      {"gate", 2, 1, 129, false, true},    {"both", 1, 2, 1, true, true},
      {"no rows", 0, 2, 16, true, true},   {"both, wide", 4, 2, 256, true, true},
  };
  for (const Row& row : rows) {
    const int64_t hd = row.head_dim, items = row.rows * row.heads, size = items * hd;
    const std::vector<float> attended = random_.Values(size, 1.0f, type());
    const std::vector<float> gate = random_.Values(size, 1.0f, type());
    const std::vector<float> norm = random_.Values(hd, 1.0f);
    Buffer attended_buffer(type(), attended), gate_buffer(type(), gate), y(type(), size);
    CudaSession session;
    PagedAttentionArgs args;
    args.type = type();
    args.heads = row.heads;
    args.head_dim = hd;
    args.norm_weight = row.norm ? session.In(norm.data(), 4 * hd) : nullptr;
    args.norm_eps = 0.05f;
    args.gate = row.gate ? session.In(gate_buffer.data(), size * element) : nullptr;
    args.y = session.InOut(y.data(), size * element);
    ASSERT_EQ(cuda::FinishAttention(nullptr, row.rows, args,
                                    session.In(attended_buffer.data(), size * element)),
              cuda::kSuccess)
        << row.name;
    session.CopyBack();
    std::vector<double> want;
    for (int64_t item = 0; item < items; ++item) {
      double mean_square = 0.05;
      for (int64_t n = 0; n < hd; ++n) {
        mean_square += std::pow(attended[item * hd + n], 2) / static_cast<double>(hd);
      }
      for (int64_t n = 0; n < hd; ++n) {
        const double g = gate[item * hd + n];
        double value = attended[item * hd + n];
        if (row.norm) value *= norm[n] / std::sqrt(mean_square);
        if (row.gate) value *= g * Sigmoid(g);
        want.push_back(value);
      }
    }
    ExpectClose(y.Floats(), want, type(), row.name);
    if (HasFatalFailure()) return;
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaAttentionTest);  // without a GPU
INSTANTIATE_TEST_SUITE_P(All, CudaAttentionTest, CudaAttentionTest::Everything(),
                         CudaAttentionTest::Name);

}  // namespace
}  // namespace ddl::kernels
