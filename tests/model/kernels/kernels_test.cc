// Every CPU kernel, of every instruction set that this processor has, against naive loops in
// double precision that follow ddl-spec line by line.

#include "model/kernels/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/kernels/cpu/cpu_kernels.h"
#include "tests/model/kernels/kernel_case.h"
#include "tests/model/kernels/naive_kernels.h"
#include "tests/model/kernels/sublayer_calls.h"

namespace ddl::kernels {
namespace {

struct Parameters {
  InstructionSet set;
  Type type;
};

std::vector<Parameters> Everything() {
  std::vector<Parameters> all;
  for (const InstructionSet set : AllInstructionSets()) {
    for (const Type type : {Type::kFloat32, Type::kBFloat16}) all.push_back({set, type});
  }
  return all;
}

class KernelsTest : public testing::TestWithParam<Parameters> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyUnsupported(GetParam().set); !why.empty()) GTEST_SKIP() << why;
    kernels_ = MakeCpuKernels(GetParam().set, {});
  }
  const CpuKernels& kernels() const { return *kernels_; }
  Type type() const { return GetParam().type; }
  // So many tokens, for ops that read nothing else of a batch.
  static Batch Tokens(int64_t tokens) {
    Batch batch;
    batch.tokens = tokens;
    return batch;
  }
  Random random_;

 private:
  std::unique_ptr<const CpuKernels> kernels_;
};

// A weight matrix as the kernels under test pack it, in one part or in two.
class Packed {
 public:
  Packed(const CpuKernels& kernels, WeightType type, Buffer& w, int64_t n, int64_t k,
         int64_t first_part)
      : data_(static_cast<char*>(
            std::aligned_alloc(64, (kernels.PackedBytes(type, n, k) + 63) / 64 * 64))),
        scales_(PaddedColumns(n)),
        sums_(PaddedColumns(n)) {
    weight_ = {type, n, k, data_.get(), scales_.data(), sums_.data()};
    const int64_t row_bytes = k * (type == WeightType::kFloat32 ? 4 : 2);
    const WeightRows parts[] = {
        {w.data(), first_part},
        {static_cast<const char*>(w.data()) + first_part * row_bytes, n - first_part}};
    kernels.Pack(parts, 2, weight_);
  }
  const PackedWeight& weight() const { return weight_; }

 private:
  struct Free {
    void operator()(char* data) const { std::free(data); }
  };
  std::unique_ptr<char, Free> data_;
  std::vector<float> scales_;
  std::vector<int32_t> sums_;
  PackedWeight weight_;
};

TEST_P(KernelsTest, ExpandInput) {
  for (const int64_t d : {1, 5, 16, 33, 64}) {
    for (const int64_t dv : {1, 3, 4, 8}) {
      for (const int64_t taps : {0, 1, 2, 4}) {  // 0: repeat
        const int64_t width = std::max<int64_t>(taps, 1);
        const std::vector<float> embedding = random_.Values(7 * d, 1.0f, type());
        const std::vector<float> conv = random_.Values(d * dv * width, 1.0f);
        std::vector<int32_t> ids;
        for (int64_t t = 0; t < 6; ++t) {
          for (int64_t r = width - 1; r >= 0; --r) {
            ids.push_back(t >= r ? static_cast<int32_t>((t - r) * 3 % 7) : -1);
          }
        }
        Buffer table(type(), embedding), x(type(), 6 * d * dv);
        ExpandInputArgs args;
        args.type = type();
        args.d = d;
        args.dv = dv;
        args.taps = width;
        args.embedding = table.data();
        args.conv = taps == 0 ? nullptr : conv.data();
        args.ids = ids.data();
        args.x = x.data();
        kernels().ExpandInput(Tokens(6), args);
        std::vector<double> want;
        for (int64_t t = 0; t < 6; ++t) {
          for (int64_t c = 0; c < d * dv; ++c) {
            double sum = taps == 0 ? embedding[ids[t] * d + c / dv] : 0.0;
            for (int64_t r = 0; r < taps; ++r) {
              const int32_t id = ids[t * width + r];
              if (id >= 0) sum += conv[c * taps + r] * embedding[id * d + c / dv];
            }
            want.push_back(sum);
          }
        }
        ExpectClose(x.Floats(), want, type(),
                    "d " + std::to_string(d) + " dv " + std::to_string(dv) + " taps " +
                        std::to_string(taps));
      }
    }
  }
}

TEST_P(KernelsTest, DeltaStep) {
  std::vector<DeltaStepCase> rows = DeltaStepCases();
  // Rows and weights in place, or padded; blocks of sixteen features one, two or four at a time;
  // more channels than there are vectors for.
  for (const int64_t d : {16, 48, 64, 65, 80, 144}) {
    rows.push_back({"baseline", d, 1, Rewrite::kAdd, Compress::kIdentity, 0, Gates::kNone});
    rows.push_back({"vdim1", d, 1, Rewrite::kDelta, Compress::kIdentity, 0, Gates::kLinear});
  }
  for (const int64_t dv : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17}) {
    for (const int64_t d : {1, 15, 16, 17, 31, 33, 80, 100, 128}) {
      rows.push_back({"cc", d, dv, Rewrite::kDelta, Compress::kChannel, 0, Gates::kLinear});
      rows.push_back(
          {"tc", d, dv, Rewrite::kDelta, Compress::kToken, 1 + (d + dv) % 5, Gates::kLinear});
    }
  }
  const RaggedBatch ragged({{0, 1}, {0, 5}, {9, 1}, {2, 4}, {7, 2}}, 4);
  const int64_t tokens = ragged.batch.tokens;
  for (const DeltaStepCase& row : rows) {
    const int64_t d = row.d, dv = row.dv, taps = std::max<int64_t>(row.taps, 1);
    const std::string what = row.name + " d " + std::to_string(d) + " dv " + std::to_string(dv) +
                             " taps " + std::to_string(row.taps);
    DeltaStepCall call(random_, ragged, row, type(), /*empty_row=*/3, 0.3f, 0.2f);
    const DeltaStepInput& before = call.before;
    Buffer x(type(), before.x);
    call.args.x = x.data();
    kernels().DeltaStep(ragged.batch, call.args);

    // Asking for the update's size changes nothing else.
    {
      std::vector<float> v_unasked = before.v, beta_unasked = before.beta;
      std::vector<float> tail_unasked = before.tail;
      Buffer x_unasked(type(), before.x), c_unasked(type(), tokens * d);
      DeltaStepArgs unasked = call.args;
      unasked.x = x_unasked.data();
      unasked.x_in = nullptr;
      unasked.c = c_unasked.data();
      unasked.v = v_unasked.data();
      unasked.beta = beta_unasked.data();
      unasked.tail = tail_unasked.data();
      unasked.update_ratio = nullptr;
      kernels().DeltaStep(ragged.batch, unasked);
      EXPECT_EQ(x_unasked.Floats(), x.Floats()) << what;
      EXPECT_EQ(c_unasked.Floats(), call.c.Floats()) << what;
      EXPECT_EQ(v_unasked, call.v) << what;
      EXPECT_EQ(beta_unasked, call.beta) << what;
      EXPECT_EQ(tail_unasked, call.tail) << what;
    }

    call.ExpectEqualsNaive(ragged, x.Floats(), what);
    // Slots of no sequence of the batch stay as they were.
    for (int64_t slot = 0; slot < ragged.slots(); slot += 2) {
      for (int64_t n = 0; n < taps * d; ++n) {
        ASSERT_EQ(call.tail[slot * taps * d + n], before.tail[slot * taps * d + n]) << what;
      }
    }
  }
}

TEST_P(KernelsTest, AttentionInputAndPagedAttention) {
  // Positions 0...length-1 are filled by a first call, the rest by a second.
  const std::vector<std::pair<int, int>> first = {{0, 1}, {0, 17}, {0, 4}, {0, 70}};
  const std::vector<std::pair<int, int>> second = {{1, 3}, {17, 1}, {4, 29}, {70, 41}};
  for (const AttentionCase& row : AttentionCases()) {
    const auto block_size = static_cast<int>(row.block_size);
    RaggedBatch shape(second, block_size);  // the larger block table serves both calls
    AttentionLayer layer(random_, row, type(), /*d=*/12, shape, /*positions=*/111, 0.5f);
    NaiveAttention naive(std::ssize(first));
    for (const auto* part : {&first, &second}) {
      RaggedBatch ragged(*part, block_size);
      ragged.block_table = shape.block_table;
      ragged.batch.block_table = ragged.block_table.data();
      ragged.batch.block_table_stride = shape.batch.block_table_stride;
      AttentionCall call(random_, layer, ragged.batch.tokens);
      kernels().AttentionInput(ragged.batch, call.input);
      kernels().PagedAttention(ragged.batch, call.attention);
      const NaiveAttention::Result want =
          naive.Next(ragged, call.input, call.attention, call.qkv_before, call.c, call.gate);
      ExpectCloseAttention(call.y.Floats(), want.y, type(), row.name);
    }
  }
}

// Scores whose exponentials are no float32: a row's largest is taken off first. The key of position
// `best` is the nearest to every query, so far that its value is the output.
TEST_P(KernelsTest, PagedAttentionOfLargeScores) {
  constexpr int64_t kHeadDim = 32, kLength = 45, kBlockSize = 16, kBlocks = 3;
  for (const int64_t best : {int64_t{0}, int64_t{15}, int64_t{16}, int64_t{31}, int64_t{37}}) {
    std::vector<float> k(kBlocks * kBlockSize * kHeadDim, 0.0f);
    std::vector<float> v = random_.Values(k.size(), 1.0f, type());
    for (int64_t p = 0; p < kLength; ++p) {
      for (int64_t n = 0; n < kHeadDim; ++n) {
        k[(p / kBlockSize * kHeadDim + n) * kBlockSize + p % kBlockSize] = p == best ? 8.0f : 4.0f;
      }
    }
    const RaggedBatch last({{38, 7}}, kBlockSize);
    const int64_t tokens = last.batch.tokens;
    Buffer q(type(), std::vector<float>(tokens * kHeadDim, 40.0f));
    Buffer k_cache(type(), k), v_cache(type(), v), y(type(), tokens * kHeadDim);
    PagedAttentionArgs args;
    args.type = type();
    args.heads = 1;
    args.head_dim = kHeadDim;
    args.q = q.data();
    args.q_stride = kHeadDim;
    args.cache = {k_cache.data(), v_cache.data(), kBlockSize};
    args.y = y.data();
    Batch batch = last.batch;
    const std::vector<int32_t> table = {0, 1, 2};
    batch.block_table = table.data();
    batch.block_table_stride = kBlocks;
    kernels().PagedAttention(batch, args);
    const std::vector<float> found = y.Floats();
    for (int64_t i = 0; i < tokens * kHeadDim; ++i) {
      EXPECT_EQ(found[i], v[best * kHeadDim + i % kHeadDim]) << best << " " << i;
    }
  }
}

// Calls the body on three ranges, as three threads would.
void ForThree(void* /*threads*/, int64_t n, int64_t /*grain*/, Executor::Body body, void* context) {
  body(context, 0, n / 3);
  body(context, n / 3, n - n / 5);
  body(context, n - n / 5, n);
}

// Rows are taken in tiles and threads share the work: a row's bits know nothing of either, nor of
// the block size.
TEST_P(KernelsTest, PagedAttentionHasTheSameBitsByAnyChunking) {
  struct Row {
    std::string name;
    int64_t heads, head_dim;
    bool norm_and_gate;
  };
  const std::vector<Row> rows = {
      {"one dimension", 1, 1, false},       {"less than a vector", 2, 15, true},
      {"one vector", 1, 16, false},         {"odd", 2, 17, false},
      {"three vectors", 1, 48, true},       {"seven vectors", 1, 112, false},
      {"the paper's", 2, 128, false},       {"more than a tile of sums", 1, 145, true},
      {"twice the paper's", 1, 256, false},
  };
  constexpr int64_t kLength = 75;
  for (const Row& row : rows) {
    const int64_t heads = row.heads, hd = row.head_dim, width = heads * hd;
    const std::vector<float> q = random_.Values(kLength * width, 1.0f, type());
    const std::vector<float> k = random_.Values(kLength * width, 1.0f, type());
    const std::vector<float> v = random_.Values(kLength * width, 1.0f, type());
    const std::vector<float> gate = random_.Values(kLength * width, 1.0f, type());
    const std::vector<float> norm = random_.Values(hd, 1.0f);
    std::vector<float> expected;
    for (const int block_size : {16, 1, 5, 32, 48, 100}) {
      const RaggedBatch whole({{0, kLength}}, block_size);
      // What nobody has written is NaN, and must not be seen.
      std::vector<float> k_cache(whole.blocks() * width * block_size, NAN), v_cache = k_cache;
      const auto fill = [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          for (int64_t head = 0; head < heads; ++head) {
            const int64_t base =
                (whole.block_table[p / block_size] * heads + head) * hd * block_size;
            for (int64_t n = 0; n < hd; ++n) {
              k_cache[base + n * block_size + p % block_size] = k[p * width + head * hd + n];
              v_cache[base + p % block_size * hd + n] = v[p * width + head * hd + n];
            }
          }
        }
      };
      int64_t filled = 0;
      for (const int64_t chunk : {75, 1, 2, 3, 7, 8, 9, 16, 37}) {
        for (const Executor& executor : {Executor(), Executor{ForThree}}) {
          const auto threaded = MakeCpuKernels(GetParam().set, executor);
          std::vector<float> found;
          for (int64_t begin = 0; begin < kLength; begin += chunk) {
            const int64_t length = std::min(chunk, kLength - begin);
            if (chunk == 1 && begin == 0) {  // token by token, with nothing beyond
              std::fill(k_cache.begin(), k_cache.end(), NAN);
              std::fill(v_cache.begin(), v_cache.end(), NAN);
              filled = 0;
            }
            fill(filled, begin + length);
            filled = std::max(filled, begin + length);
            RaggedBatch part({{static_cast<int>(begin), static_cast<int>(length)}}, block_size);
            part.batch.block_table = whole.block_table.data();
            part.batch.block_table_stride = whole.batch.block_table_stride;
            Buffer q_buffer(type(), std::vector<float>(q.begin() + begin * width,
                                                       q.begin() + (begin + length) * width));
            Buffer gate_buffer(type(), std::vector<float>(gate.begin() + begin * width,
                                                          gate.begin() + (begin + length) * width));
            Buffer k_buffer(type(), k_cache), v_buffer(type(), v_cache), y(type(), length * width);
            PagedAttentionArgs args;
            args.type = type();
            args.heads = heads;
            args.head_dim = hd;
            args.q = q_buffer.data();
            args.q_stride = width;
            args.cache = {k_buffer.data(), v_buffer.data(), block_size};
            args.norm_weight = row.norm_and_gate ? norm.data() : nullptr;
            args.norm_eps = 0.05f;
            args.gate = row.norm_and_gate ? gate_buffer.data() : nullptr;
            args.y = y.data();
            threaded->PagedAttention(part.batch, args);
            const std::vector<float> values = y.Floats();
            found.insert(found.end(), values.begin(), values.end());
          }
          if (expected.empty()) expected = found;
          ASSERT_EQ(found, expected)
              << row.name << ", block size " << block_size << ", chunks of " << chunk;
        }
      }
    }
    for (const float value : expected) ASSERT_TRUE(std::isfinite(value)) << row.name;
  }
}

// Rows that save their tails, and sequences that go on from what another slot holds: the same bits
// as one sequence that stops there and goes on in its own slot.
TEST_P(KernelsTest, TailsSavedByRowAndTakenFromAnotherSlot) {
  constexpr int64_t kD = 70, kDv = 3, kTaps = 4, kHeads = 2, kHeadDim = 5, kLength = 9;
  constexpr int64_t kTail = (kTaps - 1) * kD, kShiftTail = kHeads * kHeadDim;
  const std::vector<float> x = random_.Values(kLength * kD * kDv, 1.0f, type());
  const std::vector<float> weight = random_.Values(kTaps * kD * kDv, 0.5f);
  const std::vector<float> norm = random_.Values(kD, 1.0f);
  const std::vector<float> qkv = random_.Values(kLength * 3 * kShiftTail, 1.0f, type());
  const std::vector<float> c = random_.Values(kLength * kD, 1.0f, type());
  const std::vector<float> alpha = random_.Values(kHeads * kD, 0.5f);
  struct Result {
    std::vector<float> c, k_cache, v_cache;
  };
  // Rows [first, last) of the one sequence, from `source` to `slot`.
  const auto run = [&](int64_t first, int64_t last, int32_t source, int32_t slot,
                       const std::vector<int32_t>& row_save, std::vector<float>& tails,
                       std::vector<float>& shift_tails) {
    RaggedBatch shape({{static_cast<int>(first), static_cast<int>(last - first)}}, 16);
    shape.slot[0] = slot;
    shape.batch.tail_source = &source;
    shape.batch.row_save = row_save.empty() ? nullptr : row_save.data();
    const auto part = [&](const std::vector<float>& values) {
      const auto width = static_cast<int64_t>(values.size()) / kLength;
      return Buffer(type(), std::vector<float>(values.begin() + first * width,
                                               values.begin() + last * width));
    };
    Buffer x_part = part(x), qkv_part = part(qkv), c_part = part(c);
    Buffer c_out(type(), (last - first) * kD);
    DeltaStepArgs step;
    step.type = type();
    step.d = kD;
    step.dv = kDv;
    step.x = x_part.data();
    step.compress = Compress::kToken;
    step.compress_weight = weight.data();
    step.taps = kTaps;
    step.tail = tails.data();
    step.tail_stride = kTail;
    step.norm_weight = norm.data();
    step.norm_eps = 0.1f;
    step.c = c_out.data();
    kernels().DeltaStep(shape.batch, step);

    Buffer k_cache(type(), std::vector<float>(16 * kShiftTail, 0.0f));
    Buffer v_cache(type(), std::vector<float>(16 * kShiftTail, 0.0f));
    AttentionInputArgs input;
    input.type = type();
    input.d = kD;
    input.heads = kHeads;
    input.head_dim = kHeadDim;
    input.c = c_part.data();
    input.qkv = qkv_part.data();
    input.k_shift = {alpha.data(), shift_tails.data(), 2 * kShiftTail};
    input.v_shift = {alpha.data(), shift_tails.data() + kShiftTail, 2 * kShiftTail};
    input.cache = {k_cache.data(), v_cache.data(), 16};
    kernels().AttentionInput(shape.batch, input);
    return Result{c_out.Floats(), k_cache.Floats(), v_cache.Floats()};
  };
  constexpr int32_t kSlots = 8;
  const auto slot_of = [](const std::vector<float>& tails, int32_t slot) {
    const size_t stride = tails.size() / kSlots;
    return std::vector<float>(tails.begin() + slot * stride, tails.begin() + (slot + 1) * stride);
  };
  std::vector<float> tails = random_.Values(kSlots * kTail, 1.0f);
  std::vector<float> shift_tails = random_.Values(kSlots * 2 * kShiftTail, 1.0f);
  const std::vector<float> tails_before = tails, shift_before = shift_tails;
  // Slot 1 is the sequence's; rows 0, 3 and the last save to 4, 2 and 6.
  const Result whole = run(0, kLength, 1, 1, {4, -1, -1, 2, -1, -1, -1, -1, 6}, tails, shift_tails);
  std::vector<float> unsaved = tails_before, unsaved_shift = shift_before;
  EXPECT_EQ(run(0, kLength, 1, 1, {}, unsaved, unsaved_shift).c, whole.c);
  EXPECT_EQ(slot_of(tails, 1), slot_of(unsaved, 1));
  EXPECT_EQ(slot_of(shift_tails, 1), slot_of(unsaved_shift, 1));
  for (const int32_t untouched : {0, 3, 5, 7}) {
    EXPECT_EQ(slot_of(tails, untouched), slot_of(tails_before, untouched)) << untouched;
    EXPECT_EQ(slot_of(shift_tails, untouched), slot_of(shift_before, untouched)) << untouched;
  }
  for (const auto& [row, slot] : std::vector<std::pair<int64_t, int32_t>>{{0, 4}, {3, 2}, {8, 6}}) {
    std::vector<float> stopped = tails_before, stopped_shift = shift_before;
    run(0, row + 1, 1, 1, {}, stopped, stopped_shift);
    EXPECT_EQ(slot_of(tails, slot), slot_of(stopped, 1)) << "after row " << row;
    EXPECT_EQ(slot_of(shift_tails, slot), slot_of(stopped_shift, 1)) << "after row " << row;
    if (row + 1 == kLength) continue;
    std::vector<float> resumed = tails, resumed_shift = shift_tails;
    const Result rest = run(row + 1, kLength, slot, 0, {}, resumed, resumed_shift);
    EXPECT_EQ(rest.c, std::vector<float>(whole.c.begin() + (row + 1) * kD, whole.c.end()));
    EXPECT_EQ(slot_of(resumed, 0), slot_of(tails, 1)) << "from row " << row;
    EXPECT_EQ(slot_of(resumed, slot), slot_of(tails, slot)) << "a source stays as it is";
    for (int64_t head = 0; head < kHeads; ++head) {
      for (int64_t p = row + 1; p < kLength; ++p) {
        for (int64_t n = 0; n < kHeadDim; ++n) {
          const int64_t k = (head * kHeadDim + n) * 16 + p, v = (head * 16 + p) * kHeadDim + n;
          ASSERT_EQ(rest.k_cache[k], whole.k_cache[k]) << "from row " << row;
          ASSERT_EQ(rest.v_cache[v], whole.v_cache[v]) << "from row " << row;
        }
      }
    }
  }
}

// The boundary likewise, and TC's above all: threads that begin in the middle of a sequence, chunks
// of it, single tokens.
TEST_P(KernelsTest, DeltaStepHasTheSameBitsByAnyChunking) {
  struct Row {
    std::string name;
    int64_t d, dv;
    Compress compress;
    int64_t taps;
  };
  const std::vector<Row> rows = {
      {"vdim1", 4160, 1, Compress::kIdentity, 0},
      {"cc", 1040, 4, Compress::kChannel, 0},
      {"cc, padded", 1037, 3, Compress::kChannel, 0},
      {"tc, one tap", 1040, 4, Compress::kToken, 1},
      {"tc, two taps", 2080, 2, Compress::kToken, 2},
      {"tc", 1040, 4, Compress::kToken, 4},
      {"tc, padded", 1037, 3, Compress::kToken, 4},
      {"tc, many taps", 520, 8, Compress::kToken, 9},
      {"tc, wide", 512, 9, Compress::kToken, 3},
  };
  constexpr int64_t kLength = 23;
  for (const Row& row : rows) {
    const int64_t d = row.d, dv = row.dv, taps = std::max<int64_t>(row.taps, 1);
    const std::vector<float> x_before = random_.Values(kLength * d * dv, 1.0f, type());
    const std::vector<float> h = random_.Values(kLength * d, 0.3f, type());
    const std::vector<float> compress = random_.Values(taps * d * dv, 0.5f);
    const std::vector<float> norm = random_.Values(d, 1.0f), w_beta = random_.Values(d, 0.2f);
    const std::vector<float> w_v = random_.Values(dv * d, 0.2f), b_v = random_.Values(dv, 0.5f);
    const std::vector<float> v_before = random_.Values(kLength * dv, 1.0f);
    const std::vector<float> beta_before = random_.Values(kLength, 1.0f);
    const std::vector<float> tail_before = random_.Values(4 * taps * d, 1.0f);
    std::vector<std::vector<float>> expected;
    for (const int64_t chunk : {23, 1, 2, 3, 5, 11}) {
      for (const Executor& executor : {Executor(), Executor{ForThree}}) {
        const auto threaded = MakeCpuKernels(GetParam().set, executor);
        std::vector<float> v = v_before, beta = beta_before, tail = tail_before;
        std::vector<std::vector<float>> found(2);
        for (int64_t begin = 0; begin < kLength; begin += chunk) {
          const int64_t length = std::min(chunk, kLength - begin);
          const RaggedBatch part({{static_cast<int>(begin), static_cast<int>(length)}}, 16);
          const auto slice = [&](const std::vector<float>& values, int64_t width) {
            return std::vector<float>(values.begin() + begin * width,
                                      values.begin() + (begin + length) * width);
          };
          Buffer x(type(), slice(x_before, d * dv)), h_part(type(), slice(h, d));
          Buffer c(type(), length * d);
          DeltaStepArgs args;
          args.type = type();
          args.d = d;
          args.dv = dv;
          args.x = x.data();
          args.rewrite = Rewrite::kDelta;
          args.h = h_part.data();
          args.k_eps = 0.5f;
          args.compress = row.compress;
          args.compress_weight = compress.data();
          args.taps = row.taps;
          args.tail = tail.data();
          args.tail_stride = taps * d;
          args.norm_weight = norm.data();
          args.norm_eps = 0.1f;
          args.gates = true;
          args.gate.beta_weight = w_beta.data();
          args.gate.v_weight = w_v.data();
          args.gate.v_bias = b_v.data();
          args.c = c.data();
          args.v = v.data() + begin * dv;
          args.beta = beta.data() + begin;
          threaded->DeltaStep(part.batch, args);
          const std::vector<float> x_values = x.Floats(), c_values = c.Floats();
          found[0].insert(found[0].end(), x_values.begin(), x_values.end());
          found[1].insert(found[1].end(), c_values.begin(), c_values.end());
        }
        found.insert(found.end(), {v, beta, tail});
        if (expected.empty()) expected = found;
        const std::vector<std::string> names = {"X", "c", "v", "beta", "tail"};
        for (size_t i = 0; i < names.size(); ++i) {
          ASSERT_TRUE(found[i] == expected[i])
              << row.name << ": " << names[i] << ", chunks of " << chunk << ", "
              << (executor.parallel_for == nullptr ? "one thread" : "three threads");
        }
      }
    }
  }
}

TEST_P(KernelsTest, SwiGlu) {
  for (const int64_t m : {1, 15, 16, 17, 64, 683}) {
    const std::vector<float> ab = random_.Values(3 * 2 * m, 4.0f, type());
    Buffer in(type(), ab), out(type(), 3 * m);
    SwiGluArgs args;
    args.type = type();
    args.m = m;
    args.ab = in.data();
    args.y = out.data();
    kernels().SwiGlu(Tokens(3), args);
    std::vector<double> want;
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < m; ++i) {
        const double a = ab[t * 2 * m + i], b = ab[(t * 2 + 1) * m + i];
        want.push_back(a * Sigmoid(a) * b);
      }
    }
    ExpectClose(out.Floats(), want, type(), "m " + std::to_string(m));
  }
}

// The type under test is the result's.
TEST_P(KernelsTest, MatMul) {
  struct Shape {
    int64_t n, k;
  };
  // Of the last so few rows fit into a core's cache that it takes several turns.
  constexpr Shape kShapes[] = {{1, 1},  {1, 2},   {31, 3},  {32, 32},  {33, 31},   {40, 33},
                               {64, 2}, {65, 66}, {100, 7}, {96, 257}, {33, 12345}};
  // Around the rows that a tile may have, and several of them.
  constexpr int64_t kRows[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 49, 66};
  constexpr int64_t kMost = 66;
  for (const WeightType weight_type : {WeightType::kFloat32, WeightType::kBFloat16}) {
    const Type x_type = weight_type == WeightType::kFloat32 ? Type::kFloat32 : Type::kBFloat16;
    for (const Shape& shape : kShapes) {
      // A row of float32 has twice the words.
      const int64_t n = shape.n;
      const int64_t k = x_type == Type::kFloat32 ? (shape.k + 1) / 2 : shape.k;
      // Sums of any length stay about as large, and so does the rounding of their terms.
      const float scale = std::min(0.5f, 5.0f / std::sqrt(static_cast<float>(k)));
      const std::vector<float> w = random_.Values(n * k, scale, x_type);
      const std::vector<float> x = random_.Values(kMost * k, 1.0f, x_type);
      Buffer weight(x_type, w);
      const Packed packed(kernels(), weight_type, weight, n, k, n / 3);
      std::vector<double> want(kMost * n, 0.0);
      for (int64_t t = 0; t < kMost; ++t) {
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < k; ++j) want[t * n + i] += double(x[t * k + j]) * w[i * k + j];
        }
      }
      std::vector<float> whole;
      for (auto rows = std::rbegin(kRows); rows != std::rend(kRows); ++rows) {
        const std::string what = std::string(x_type == Type::kFloat32 ? "float32 " : "bfloat16 ") +
                                 std::to_string(n) + " x " + std::to_string(k) + ", " +
                                 std::to_string(*rows) + " rows";
        // The last rows: nothing is read past the end, or written before the beginning.
        const int64_t first = kMost - *rows;
        Buffer in(x_type, std::vector<float>(x.begin() + first * k, x.end()));
        Buffer out(type(), *rows * n);
        MatMulArgs args;
        args.weight = packed.weight();
        args.x = in.data();
        args.y_type = type();
        args.y = out.data();
        kernels().MatMul(*rows, args);
        const std::vector<float> found = out.Floats();
        ExpectClose(found, std::vector<double>(want.begin() + first * n, want.end()), type(), what);
        if (whole.empty()) whole = found;
        EXPECT_TRUE(std::equal(found.begin(), found.end(), whole.begin() + first * n))
            << what << ": a row depends on the others";
      }
    }
  }
}

// Likewise. What quantization costs is not looked at here: the loops take the same integers.
TEST_P(KernelsTest, QuantizedMatMul) {
  struct Shape {
    int64_t n, k;
  };
  constexpr Shape kShapes[] = {{1, 1},   {1, 4},   {31, 3},   {32, 32},   {33, 31},
                               {65, 66}, {70, 65}, {96, 257}, {33, 30001}};
  constexpr int64_t kRows[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 25, 32, 33, 40};
  constexpr int64_t kMost = 40;
  for (const Shape& shape : kShapes) {
    const auto [n, k] = shape;
    std::vector<float> w = random_.Values(n * k, 0.5f, Type::kBFloat16);
    std::vector<float> x = random_.Values(kMost * k, 1.0f, Type::kBFloat16);
    if (n > 1) std::fill_n(w.begin() + k, k, 0.0f);  // a row of zeros has no scale
    std::fill_n(x.begin() + 3 * k, k, 0.0f);
    Buffer weight(Type::kBFloat16, w);
    const Packed packed(kernels(), WeightType::kInt8, weight, n, k, n / 2);

    const auto quantize = [k = k](const float* row) {
      double largest = 0.0;
      for (int64_t j = 0; j < k; ++j) largest = std::max<double>(largest, std::abs(row[j]));
      std::vector<double> q(k + 1);
      for (int64_t j = 0; j < k; ++j) {
        // float32, as the kernels: a tie must fall to the same side.
        const float inverse = largest > 0 ? 127.0f / static_cast<float>(largest) : 0.0f;
        q[j] = std::floor(row[j] * inverse + 128.5f) - 128;
      }
      q[k] = largest / 127;
      return q;
    };
    std::vector<double> want;
    for (int64_t t = 0; t < kMost; ++t) {
      const std::vector<double> qx = quantize(x.data() + t * k);
      for (int64_t i = 0; i < n; ++i) {
        double largest = 0.0, sum = 0.0;
        for (int64_t j = 0; j < k; ++j) largest = std::max<double>(largest, std::abs(w[i * k + j]));
        for (int64_t j = 0; j < k && largest > 0; ++j) {
          const float inverse = 127.0f / static_cast<float>(largest);
          sum += std::nearbyint(w[i * k + j] * inverse) * qx[j];
        }
        want.push_back(sum * largest / 127 * qx[k]);
      }
    }
    for (const int64_t rows : kRows) {
      const int64_t first = kMost - rows;
      Buffer in(Type::kBFloat16, std::vector<float>(x.begin() + first * k, x.end()));
      Buffer out(type(), rows * n);
      MatMulArgs args;
      args.weight = packed.weight();
      args.x = in.data();
      args.y_type = type();
      args.y = out.data();
      kernels().MatMul(rows, args);
      ExpectClose(
          out.Floats(), std::vector<double>(want.begin() + first * n, want.end()), type(),
          std::to_string(n) + " x " + std::to_string(k) + ", " + std::to_string(rows) + " rows");
    }
  }
}

// No integer stands for a NaN or an infinity: the whole row says so, and no other.
TEST_P(KernelsTest, QuantizedMatMulOfWhatIsNotFinite) {
  constexpr int64_t kN = 40, kRows = 3;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const int64_t k : {5, 64, 70}) {
    for (const float special : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
      for (const int64_t at : {int64_t{0}, k - 1}) {
        std::vector<float> x = random_.Values(kRows * k, 1.0f, Type::kBFloat16);
        x[k + at] = special;
        Buffer weight(Type::kBFloat16, random_.Values(kN * k, 0.5f, Type::kBFloat16));
        const Packed packed(kernels(), WeightType::kInt8, weight, kN, k, kN);
        Buffer in(Type::kBFloat16, x), out(type(), kRows * kN);
        MatMulArgs args;
        args.weight = packed.weight();
        args.x = in.data();
        args.y_type = type();
        args.y = out.data();
        kernels().MatMul(kRows, args);
        const std::vector<float> found = out.Floats();
        for (int64_t i = 0; i < kRows * kN; ++i) {
          EXPECT_EQ(std::isfinite(found[i]), i / kN != 1) << k << " " << special << " " << i;
        }
      }
    }
  }
}

TEST_P(KernelsTest, FindLargest) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const int64_t n : {1, 15, 16, 17, 63, 64, 65, 128, 1000}) {
    for (const int64_t at : {int64_t{0}, n / 2, n - 1}) {  // where something special is
      const std::string where = std::to_string(at) + " of " + std::to_string(n);
      std::vector<float> values = random_.Values(n, 10.0f);
      for (float& value : values) value = -std::abs(value) - 1.0f;
      values[at] = -0.5f;
      Largest largest = kernels().FindLargest(values.data(), n);
      EXPECT_EQ(largest.value, -0.5f) << where;
      EXPECT_TRUE(largest.all_finite) << where;
      for (const float special : {-kInfinity, kInfinity, kNaN, -kNaN}) {
        values[at] = special;
        largest = kernels().FindLargest(values.data(), n);
        EXPECT_FALSE(largest.all_finite) << where << ", " << special;
        if (std::isnan(special)) continue;
        EXPECT_EQ(largest.value, *std::max_element(values.begin(), values.end()))
            << where << ", " << special;
      }
    }
  }
}

TEST_P(KernelsTest, SoftmaxWeights) {
  for (const int64_t n : {1, 15, 16, 17, 1000}) {
    const std::vector<float> logits = random_.Values(n, 10.0f);
    const float max = *std::max_element(logits.begin(), logits.end());
    std::vector<float> weights(n);
    const float sum = kernels().SoftmaxWeights(logits.data(), n, max, 0.7f, weights.data());
    double want_sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      const double argument = (double(logits[i]) - max) * 0.7f;
      const double want = std::exp(argument);
      // The float32 argument is off by a few 2^-24 of itself, and exp by as much relatively.
      EXPECT_NEAR(weights[i], want, 2e-7 * (1.0 + std::abs(argument)) * want + 1e-30)
          << n << " " << i;
      want_sum += want;
    }
    EXPECT_NEAR(sum, want_sum, 2e-6 * want_sum);
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelsTest, testing::ValuesIn(Everything()), [](const auto& info) {
  return std::string(Name(info.param.set)) +
         (info.param.type == Type::kFloat32 ? "_float32" : "_bfloat16");
});

}  // namespace
}  // namespace ddl::kernels
