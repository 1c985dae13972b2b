// DeltaStep: the CPU's twin and the CUDA source against naive loops in double precision.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/model/kernels/cuda/engine.h"
#include "tests/model/kernels/sublayer_calls.h"

namespace ddl::kernels {
namespace {

// A boundary, and what it is to this kernel.
struct Row : DeltaStepCase {
  int64_t offset = 0;   // elements that X starts past a multiple of 16 bytes
  bool decode = false;  // one row per sequence
  bool x_in = true;
  bool saves = false;  // tails by row, from another slot
  bool update_ratio = false;

  std::string Describe() const {
    return name + " d " + std::to_string(d) + " dv " + std::to_string(dv) + " taps " +
           std::to_string(taps);
  }
};

std::vector<Row> Rows() {
  using enum Rewrite;
  using enum Compress;
  std::vector<Row> rows;
  for (const DeltaStepCase& common : DeltaStepCases()) rows.push_back({common});
  rows.insert(
      rows.end(),
      {
          {{"vdim1, whole packs", 1056, 1, kDelta, kIdentity, 0, Gates::kLinear}},
          {{"two-layer beta over several warps", 200, 2, kDelta, kToken, 3, Gates::kHidden}},
          {{"x_in not wanted", 40, 4, kDelta, kChannel, 0, Gates::kLinear}, 0, false, false},
          // Slices: no 16-byte access is aligned, then some are.
          {{"sliced by 1", 64, 4, kDelta, kChannel, 0, Gates::kLinear}, 1},
          {{"sliced by 2", 64, 2, kDelta, kChannel, 0, Gates::kLinear}, 2},
          {{"sliced by 4", 64, 4, kDelta, kToken, 4, Gates::kLinear}, 4},
          {{"tc, sliced by 1", 64, 4, kDelta, kToken, 4, Gates::kLinear}, 1},
          {{"small model", 768, 4, kDelta, kChannel, 0, Gates::kLinear}},
          // Sizes and options that have kernels of their own in bfloat16.
          {{"small, vdim1", 768, 1, kDelta, kIdentity, 0, Gates::kLinear}, 0, false, false},
          {{"small, dv 2", 768, 2, kDelta, kChannel, 0, Gates::kLinear}, 0, true, false},
          {{"small, dv 4", 768, 4, kDelta, kChannel, 0, Gates::kLinear}, 0, false, false},
          {{"small, dv 4, no sigmoid", 768, 4, kDelta, kChannel, 0, Gates::kNoSigmoid},
           0,
           true,
           false},
          {{"small, dv 4, two-layer beta", 768, 4, kDelta, kChannel, 0, Gates::kHidden},
           0,
           true,
           false},
          {{"small, dv 8", 768, 8, kDelta, kChannel, 0, Gates::kLinear}, 0, true, false},
          {{"medium, vdim1", 1024, 1, kDelta, kIdentity, 0, Gates::kLinear}, 0, true, false},
          {{"medium, dv 4", 1024, 4, kDelta, kChannel, 0, Gates::kLinear}, 0, true, false},
          {{"medium, dv 4, sliced", 1024, 4, kDelta, kChannel, 0, Gates::kLinear}, 4, true, false},
          {{"d 2048", 2048, 2, kDelta, kChannel, 0, Gates::kLinear}, 0, true, false},
          {{"tc, small", 768, 4, kDelta, kToken, 4, Gates::kLinear}},
          // More packs than a thread holds.
          {{"large row", 3100, 8, kDelta, kChannel, 0, Gates::kLinear}, 0, true},
          {{"tc, first boundary, decode", 36, 4, kNone, kToken, 4, Gates::kLinear}, 0, true},
          {{"tc, tails by row", 36, 4, kDelta, kToken, 4, Gates::kLinear}, 0, false, true, true},
          {{"tc, tails by row, odd", 33, 3, kDelta, kToken, 3, Gates::kLinear},
           0,
           false,
           true,
           true},
          {{"tc, tails by row, decode", 36, 4, kDelta, kToken, 4, Gates::kLinear},
           0,
           true,
           true,
           true},
          {{"tc, tails by row, dv 1", 64, 1, kDelta, kToken, 5, Gates::kLinear},
           0,
           true,
           true,
           true},
      });
  const auto add_update_ratio = [&rows](Row row) {
    row.update_ratio = true;
    rows.push_back(row);
  };
  add_update_ratio({{"ratio, baseline", 48, 1, kAdd, kIdentity, 0, Gates::kNone}});
  add_update_ratio({{"ratio, first boundary", 32, 4, kNone, kChannel, 0, Gates::kLinear}});
  add_update_ratio({{"ratio, before the head", 32, 4, kDelta, kChannel, 0, Gates::kNone}});
  add_update_ratio({{"ratio, tc", 36, 4, kDelta, kToken, 4, Gates::kLinear}});
  add_update_ratio({{"ratio, tc decode", 36, 4, kDelta, kToken, 4, Gates::kLinear}, 0, true});
  add_update_ratio({{"ratio, sliced", 64, 4, kDelta, kChannel, 0, Gates::kLinear}, 1});
  for (int64_t dv = 1; dv <= 8; ++dv) {
    for (const int64_t d : {1, 127, 128, 129, 400}) {
      add_update_ratio({{"ratio", d, dv, kDelta, kChannel, 0, Gates::kLinear}});
    }
  }
  for (int64_t dv = 1; dv <= 8; ++dv) {
    for (const int64_t d : {1, 8, 31, 32, 33, 129, 136}) {
      rows.push_back({{"cc", d, dv, kDelta, kChannel, 0, Gates::kLinear}});
      rows.push_back({{"tc", d, dv, kDelta, kToken, 1 + (d + dv) % 5, Gates::kLinear}});
      rows.push_back(
          {{"tc decode", d, dv, kDelta, kToken, 1 + (d + dv) % 5, Gates::kLinear}, 0, true});
    }
  }
  return rows;
}

// A tensor that starts `offset` elements past where vectors are aligned.
class Sliced {
 public:
  Sliced(Type type, const std::vector<float>& values, int64_t offset)
      : offset_(offset), element_(type == Type::kFloat32 ? 4 : 2), buffer_(type, Padded(values)) {}
  void* data() { return static_cast<unsigned char*>(buffer_.data()) + offset_ * element_; }
  std::vector<float> Floats() const {
    std::vector<float> values = buffer_.Floats();
    return std::vector<float>(values.begin() + offset_, values.end());
  }

 private:
  std::vector<float> Padded(const std::vector<float>& values) const {
    std::vector<float> padded(offset_, 0.0f);
    padded.insert(padded.end(), values.begin(), values.end());
    return padded;
  }
  int64_t offset_;
  int64_t element_;
  Buffer buffer_;
};

class CudaDeltaStepTest : public CudaKernelTest {
 protected:
  void Check(const Row& row);
};

void CudaDeltaStepTest::Check(const Row& row) {
  RaggedBatch ragged(row.decode
                         ? std::vector<std::pair<int, int>>{{0, 1}, {3, 1}, {1, 1}}
                         : std::vector<std::pair<int, int>>{{0, 1}, {0, 5}, {9, 1}, {2, 3}, {7, 2}},
                     4);
  if (row.saves) ragged.SaveTailsByRow();
  const float scale = 3.0f / std::sqrt(static_cast<float>(row.d) + 60.0f);
  // A row that the rewrite finds empty has no ratio.
  DeltaStepCall call(random_, ragged, row, type(), /*empty_row=*/0, scale, 0.5f * scale);
  Sliced x(type(), call.before.x, row.offset);
  call.args.x = x.data();
  if (!row.x_in) call.args.x_in = nullptr;
  if (!row.update_ratio) call.args.update_ratio = nullptr;
  RunKernel(engine(), ragged, call.args);
  call.ExpectEqualsNaive(ragged, x.Floats(), row.Describe());
}

TEST_P(CudaDeltaStepTest, EqualsNaiveLoops) {
  for (const Row& row : Rows()) {
    Check(row);
    if (HasFatalFailure()) return;
  }
}

// One sequence of 11 rows: whole, in chunks, one at a time, and beside others, where every chunk
// is a call. All give the same bits of X, x_in, c, v, beta and the tail.
TEST_P(CudaDeltaStepTest, BitsDependOnNeitherBatchNorChunks) {
  constexpr int64_t kTokens = 11, kTaps = 4;
  struct Layer {
    std::string name;
    int64_t d, dv;
    Compress compress;
  };
  const std::vector<Layer> layers = {
      {"cc", 96, 4, Compress::kChannel},      {"tc", 96, 4, Compress::kToken},
      {"tc, odd d", 33, 3, Compress::kToken}, {"tc, dv 8", 40, 8, Compress::kToken},
      {"tc, dv 1", 64, 1, Compress::kToken},  {"vdim1", 40, 1, Compress::kIdentity},
  };
  for (const Layer& layer : layers) {
    const int64_t d = layer.d, dv = layer.dv;
    const std::vector<float> x = random_.Values(kTokens * d * dv, 1.0f, type());
    const std::vector<float> h = random_.Values(kTokens * d, 0.3f, type());
    const std::vector<float> compress = random_.Values(kTaps * d * dv, 0.5f);
    const std::vector<float> norm = random_.Values(d, 1.0f), w_beta = random_.Values(d, 0.2f);
    const std::vector<float> w_v = random_.Values(dv * d, 0.2f), b_v = random_.Values(dv, 0.5f);
    const std::vector<float> v = random_.Values(kTokens * dv, 1.0f);
    const std::vector<float> beta = random_.Values(kTokens, 0.5f);

    // Runs the sequence in chunks of `chunk`, each call beside `others` unrelated rows.
    const auto run = [&](int64_t chunk, int64_t others) {
      std::vector<float> result, tail(3 * kTaps * d, NAN);
      for (int64_t begin = 0; begin < kTokens; begin += chunk) {
        const int64_t rows = std::min(chunk, kTokens - begin), tokens = rows + others;
        std::vector<std::pair<int, int>> sequences;
        if (others > 0) sequences.push_back({0, static_cast<int>(others)});
        sequences.push_back({static_cast<int>(begin), static_cast<int>(rows)});
        RaggedBatch ragged(sequences, 4);
        ragged.slot.back() = 1;
        if (others > 0) ragged.slot.front() = 2;
        std::vector<float> all_tails(ragged.slots() * kTaps * d, 0.0f);
        std::copy(tail.begin(), tail.end(), all_tails.begin());
        const auto rows_of = [&](const std::vector<float>& values, int64_t width) {
          std::vector<float> part(others * width, 0.25f);
          part.insert(part.end(), values.begin() + begin * width,
                      values.begin() + (begin + rows) * width);
          return part;
        };
        Buffer x_part(type(), rows_of(x, d * dv)), h_part(type(), rows_of(h, d));
        Buffer x_in(type(), tokens * d), c(type(), tokens * d);
        std::vector<float> v_part = rows_of(v, dv), beta_part = rows_of(beta, 1);
        DeltaStepArgs args;
        args.type = type();
        args.d = d;
        args.dv = dv;
        args.x = x_part.data();
        args.rewrite = Rewrite::kDelta;
        args.h = h_part.data();
        args.k_eps = 1e-5f;
        args.compress = layer.compress;
        args.compress_weight = compress.data();
        args.taps = kTaps;
        args.tail = all_tails.data();
        args.tail_stride = kTaps * d;
        args.norm_weight = norm.data();
        args.norm_eps = 1e-5f;
        args.gates = true;
        args.gate.beta_weight = w_beta.data();
        args.gate.v_weight = w_v.data();
        args.gate.v_bias = b_v.data();
        args.x_in = x_in.data();
        args.c = c.data();
        args.v = v_part.data();
        args.beta = beta_part.data();
        RunKernel(engine(), ragged, args);
        std::copy(all_tails.begin() + kTaps * d, all_tails.begin() + 2 * kTaps * d,
                  tail.begin() + kTaps * d);
        // One row after the other, so that results of different chunks line up.
        const std::vector<float> x_out = x_part.Floats(), c_out = c.Floats();
        const std::vector<float> x_in_out = x_in.Floats();
        for (int64_t t = others; t < tokens; ++t) {
          const auto append = [&](const std::vector<float>& values, int64_t width) {
            result.insert(result.end(), values.begin() + t * width,
                          values.begin() + (t + 1) * width);
          };
          append(x_out, d * dv);
          append(x_in_out, d);
          append(c_out, d);
          append(v_part, dv);
          append(beta_part, 1);
        }
      }
      if (layer.compress == Compress::kToken) {
        result.insert(result.end(), tail.begin() + kTaps * d, tail.begin() + (2 * kTaps - 1) * d);
      }
      return result;
    };
    const std::vector<float> whole = run(kTokens, 0);
    for (const auto& [chunk, others] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 0}, {2, 0}, {3, 0}, {kTokens, 2}, {1, 1}, {5, 3}}) {
      const std::vector<float> found = run(chunk, others);
      ASSERT_EQ(found.size(), whole.size());
      EXPECT_EQ(std::memcmp(found.data(), whole.data(), whole.size() * sizeof(float)), 0)
          << layer.name << ", chunks of " << chunk << " beside " << others;
    }
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaDeltaStepTest);  // without a GPU
INSTANTIATE_TEST_SUITE_P(All, CudaDeltaStepTest, CudaDeltaStepTest::Everything(),
                         CudaDeltaStepTest::Name);

}  // namespace
}  // namespace ddl::kernels
