// ExpandInput, SwiGlu, GatherRows and FillIds: row by row, without sums over a row.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/kernels/cuda/cuda_kernels.h"
#include "tests/model/kernels/cuda/engine.h"
#include "tests/model/kernels/cuda/memory.h"
#include "tests/model/kernels/cuda/session.h"

namespace ddl::kernels {
namespace {

class CudaRowsTest : public CudaKernelTest {
 protected:
  size_t element() const { return type() == Type::kFloat32 ? 4 : 2; }
};

TEST_P(CudaRowsTest, ExpandInput) {
  constexpr int64_t kTokens = 6, kVocabulary = 7;
  for (const int64_t d : {1, 5, 32, 33, 264}) {
    for (const int64_t dv : {1, 2, 3, 4, 8}) {
      for (const int64_t taps : {0, 1, 2, 4}) {  // 0: repeat
        const int64_t width = std::max<int64_t>(taps, 1);
        const std::vector<float> embedding = random_.Values(kVocabulary * d, 1.0f, type());
        const std::vector<float> conv = random_.Values(d * dv * width, 1.0f);
        std::vector<int32_t> ids;
        for (int64_t t = 0; t < kTokens; ++t) {
          for (int64_t r = width - 1; r >= 0; --r) {
            ids.push_back(t >= r ? static_cast<int32_t>((t - r) * 3 % kVocabulary) : -1);
          }
        }
        Buffer table(type(), embedding), x(type(), kTokens * d * dv);
        ExpandInputArgs args;
        args.type = type();
        args.d = d;
        args.dv = dv;
        args.taps = width;
        args.embedding = table.data();
        args.conv = taps == 0 ? nullptr : conv.data();
        args.ids = ids.data();
        args.x = x.data();
        RunKernel(engine(), kTokens, kVocabulary, args);
        std::vector<double> want;
        for (int64_t t = 0; t < kTokens; ++t) {
          for (int64_t c = 0; c < d * dv; ++c) {
            double sum = taps == 0 ? embedding[ids[t] * d + c / dv] : 0.0;
            for (int64_t r = 0; r < taps; ++r) {
              const int32_t id = ids[t * width + r];
              if (id >= 0) sum += double(conv[c * taps + r]) * embedding[id * d + c / dv];
            }
            want.push_back(sum);
          }
        }
        ExpectClose(x.Floats(), want, type(),
                    "d " + std::to_string(d) + " dv " + std::to_string(dv) + " taps " +
                        std::to_string(taps));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(CudaRowsTest, SwiGlu) {
  struct Row {
    int64_t m;
    int64_t offset = 0;  // elements that the input starts past a multiple of 16 bytes
  };
  // 2730 is the medium model's; 2049 packs and more than one block of them.
  const std::vector<Row> rows = {{1},    {7},    {8},    {31},    {32},    {33},   {683},
                                 {2048}, {2049}, {2730}, {64, 1}, {64, 2}, {64, 4}};
  for (const auto& [m, offset] : rows) {
    std::vector<float> ab = random_.Values(offset + 3 * 2 * m, 4.0f, type());
    Buffer in(type(), ab), out(type(), 3 * m);
    ab.erase(ab.begin(), ab.begin() + offset);
    SwiGluArgs args;
    args.type = type();
    args.m = m;
    args.ab = static_cast<unsigned char*>(in.data()) + offset * element();
    args.y = out.data();
    RunKernel(engine(), 3, args);
    std::vector<double> want;
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < m; ++i) {
        const double a = ab[t * 2 * m + i], b = ab[(t * 2 + 1) * m + i];
        want.push_back(a / (1.0 + std::exp(-a)) * b);
      }
    }
    ExpectClose(out.Floats(), want, type(),
                "m " + std::to_string(m) + " offset " + std::to_string(offset));
    if (HasFatalFailure()) return;
  }
}

TEST_P(CudaRowsTest, GatherRows) {
  if (engine().where == Where::kCpu) return;  // the CPU copies rows with memcpy
  cuda::ChooseSchedule(engine().schedule);
  struct Row {
    std::string name;
    int64_t d;
    std::vector<int32_t> rows;
  };
  const std::vector<Row> rows = {
      {"none", 8, {}},
      {"last of each", 768, {2, 3, 8}},
      {"one element", 1, {4, 0}},
      {"four bytes at a time", 34, {0, 8}},
      {"an odd number", 257, {1, 1, 7}},
      {"a pack less than a block's", 1016, {5}},
      {"a pack more", 1032, {5, 6}},
  };
  for (const Row& row : rows) {
    const std::vector<float> x = random_.Values(9 * row.d, 1.0f, type());
    Buffer in(type(), x), out(type(), row.rows.size() * row.d);
    CudaSession session;
    cuda::GatherRowsArgs args;
    args.type = type();
    args.d = row.d;
    args.x = session.In(in.data(), 9 * row.d * element());
    args.rows = session.In(row.rows.data(), 4 * row.rows.size());
    args.y = session.InOut(out.data(), row.rows.size() * row.d * element());
    const auto count = static_cast<int64_t>(row.rows.size());
    ASSERT_EQ(cuda::GatherRows(nullptr, count, args), cuda::kSuccess) << row.name;
    session.CopyBack();
    std::vector<float> want;
    for (const int32_t from : row.rows) {
      want.insert(want.end(), x.begin() + from * row.d, x.begin() + (from + 1) * row.d);
    }
    EXPECT_EQ(out.Floats(), want) << row.name;
  }
}

TEST_P(CudaRowsTest, FillIds) {
  if (engine().where == Where::kCpu) return;  // it knows what it has sampled
  cuda::ChooseSchedule(engine().schedule);
  struct Row {
    std::string name;
    std::vector<int32_t> sampled, from, to;
  };
  std::vector<Row> rows = {
      {"none", {5}, {}, {}},
      {"the only one", {5}, {0}, {3}},
      {"some of each, in other orders", {7, 0, 9, 11}, {3, 0, 1}, {1, 6, 4}},
      {"one that was not sampled", {-1, 8}, {0, 1}, {2, 0}},
  };
  for (const int32_t count : {127, 128, 129, 300}) {  // around a block of threads
    Row& row = rows.emplace_back();
    row.name = std::to_string(count);
    for (int32_t n = 0; n < count; ++n) {
      row.sampled.push_back(1000 + n);
      row.from.push_back(count - 1 - n);
      row.to.push_back(2 * n + 1);
    }
  }
  for (const Row& row : rows) {
    std::vector<int32_t> ids(2 * row.to.size() + 8), want;
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = 100 + static_cast<int32_t>(i);
    want = ids;
    for (size_t n = 0; n < row.to.size(); ++n) {
      want[row.to[n]] = std::max(0, row.sampled[row.from[n]]);
    }
    CudaSession session;
    cuda::FillIdsArgs args;
    args.sampled = session.In(row.sampled.data(), 4 * row.sampled.size());
    args.from = session.In(row.from.data(), 4 * row.from.size());
    args.to = session.In(row.to.data(), 4 * row.to.size());
    args.ids = session.InOut(ids.data(), 4 * ids.size());
    ASSERT_EQ(cuda::FillIds(nullptr, static_cast<int64_t>(row.to.size()), args), cuda::kSuccess)
        << row.name;
    session.CopyBack();
    EXPECT_EQ(ids, want) << row.name;
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaRowsTest);  // without a GPU
INSTANTIATE_TEST_SUITE_P(All, CudaRowsTest, CudaRowsTest::Everything(), CudaRowsTest::Name);

}  // namespace
}  // namespace ddl::kernels
