#include "model/linear.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/norm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sub.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "model/device/device.h"

namespace ddl {
namespace {

using kernels::InstructionSet;

struct Shape {
  int64_t out;
  int64_t in;
};

// Those of the goldens, the demo model, and the paper's sizes (d 768, 1024, 1280; gates and gpt's
// MLP among them).
constexpr Shape kGoldenShapes[] = {{96, 32}, {170, 32}, {32, 85}, {256, 32}, {33, 31}};
constexpr Shape kDemoShapes[] = {{864, 288}, {4096, 288}, {1536, 288}, {288, 768},
                                 {576, 192}, {1024, 192}, {192, 512}};
constexpr Shape kPaperShapes[] = {{2304, 768},  {768, 768},   {4096, 768},  {768, 2048},
                                  {8192, 768},  {3072, 1024}, {1024, 1024}, {5460, 1024},
                                  {1024, 2730}, {3840, 1280}, {1280, 3414}, {50304, 768}};

struct Parameters {
  InstructionSet set;
  at::ScalarType type;
  Quantization quantization;
};

class LinearTest : public testing::TestWithParam<Parameters> {
 protected:
  void SetUp() override {
    const std::string why = kernels::WhyUnsupported(GetParam().set);
    if (!why.empty()) GTEST_SKIP() << why;
    kernels_ = MakeCpuKernels(GetParam().set, &threads_);
    at::manual_seed(1);
  }
  // `make test` looks at fewer shapes and numbers of rows, and at the largest only where kernels
  // are fast.
  static bool is_long() { return std::getenv("DDL_ALL_SHAPES") != nullptr; }
  static std::vector<Shape> Shapes() {
    std::vector<Shape> shapes(std::begin(kGoldenShapes), std::end(kGoldenShapes));
    shapes.insert(shapes.end(), std::begin(kDemoShapes), std::end(kDemoShapes));
    const bool is_slow = GetParam().set == InstructionSet::kPortable ||
                         GetParam().set == InstructionSet::kAmxEmulated;
    if (is_long()) {
      shapes.insert(shapes.end(), std::begin(kPaperShapes), std::end(kPaperShapes));
      if (is_slow) shapes.pop_back();  // the head, half an hour there
    } else if (!is_slow) {
      shapes.insert(shapes.end(), std::begin(kPaperShapes), std::begin(kPaperShapes) + 4);
    }
    return shapes;
  }
  static std::vector<int64_t> Rows() {
    if (!is_long()) return {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65, 129};
    std::vector<int64_t> rows(70);
    std::iota(rows.begin(), rows.end(), 1);
    rows.insert(rows.end(), {127, 128, 129, 511, 512, 513});
    return rows;
  }
  LinearOptions Options() {
    return {.kernels = kernels_.get(), .memory = &memory_, .quantization = GetParam().quantization};
  }

 private:
  ThreadPool threads_{2};
  std::unique_ptr<const kernels::CpuKernels> kernels_;
  HugePages memory_;
};

// A row of the product has the same bits whatever the number of rows, as the first or the last, and
// is near to a product in double precision.
TEST_P(LinearTest, ARowDoesNotDependOnTheOthers) {
  const auto [set, type, quantization] = GetParam();
  const std::vector<int64_t> all_rows = Rows();
  const int64_t most = all_rows.back();
  for (const Shape& shape : Shapes()) {
    SCOPED_TRACE(testing::Message() << "[" << shape.out << ", " << shape.in << "]");
    const at::Tensor weight = at::randn({shape.out, shape.in}).mul(0.05).to(type);
    const at::Tensor x = at::randn({most, shape.in}).to(type);
    const Linear linear({weight}, Options());
    const at::Tensor expected = linear(x), exact_of = linear.ToFloat(x);
    // Some rows are enough for the values: a product in double is slow.
    const int64_t checked = std::min<int64_t>(most, 20);
    const at::Tensor exact =
        at::linear(x.narrow(0, 0, checked).to(at::kDouble), weight.to(at::kDouble));
    const at::Tensor found = exact_of.narrow(0, 0, checked).to(at::kDouble);
    const double error =
        at::norm(at::sub(found, exact)).item<double>() / at::norm(exact).item<double>();
    if (quantization == Quantization::kInt8) {
      EXPECT_LT(error, 0.02);
      EXPECT_GT(error, 0.001) << "is it quantized?";
    } else {
      // Float32 sums, one term after another: their rounding grows with the square root of terms.
      EXPECT_LT(error, 1e-7 * std::sqrt(static_cast<double>(shape.in)));
      ASSERT_TRUE(at::allclose(found, exact, 1e-4, 1e-4));
    }
    EXPECT_TRUE(at::equal(expected, exact_of.to(type)));
    for (const int64_t rows : all_rows) {
      const int64_t from = most - rows;
      ASSERT_TRUE(at::equal(linear(x.narrow(0, 0, rows)), expected.narrow(0, 0, rows)))
          << "the first " << rows;
      ASSERT_TRUE(
          at::equal(linear(x.narrow(0, from, rows).contiguous()), expected.narrow(0, from, rows)))
          << "the last " << rows;
    }
  }
}

// Weights that are stacked are what one weight would be.
TEST_P(LinearTest, StacksWeights) {
  const auto [set, type, quantization] = GetParam();
  for (const std::vector<int64_t>& parts :
       std::vector<std::vector<int64_t>>{{1, 1}, {31, 1}, {32, 32}, {33, 7, 60}, {96, 96, 96}}) {
    std::vector<at::Tensor> weights;
    weights.reserve(parts.size());
    for (const int64_t rows : parts) weights.push_back(at::randn({rows, 70}).to(type));
    const at::Tensor x = at::randn({19, 70}).to(type);
    const Linear stacked(weights, Options());
    const Linear whole({at::cat(weights)}, Options());
    EXPECT_EQ(stacked.out_features(), whole.out_features());
    EXPECT_TRUE(at::equal(stacked(x), whole(x)));
    at::Tensor out = at::empty({25, stacked.out_features()}, x.options());
    EXPECT_TRUE(at::equal(stacked(x, out), whole(x)));
    EXPECT_TRUE(at::equal(out.narrow(0, 0, 19), whole(x)));
  }
}

std::vector<Parameters> Everything() {
  std::vector<Parameters> all;
  for (const InstructionSet set : kernels::AllInstructionSets()) {
    all.push_back({set, at::kFloat, Quantization::kNone});
    all.push_back({set, at::kBFloat16, Quantization::kNone});
    all.push_back({set, at::kBFloat16, Quantization::kInt8});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, LinearTest, testing::ValuesIn(Everything()), [](const auto& info) {
  const char* const type = info.param.quantization == Quantization::kInt8
                               ? "int8"
                               : (info.param.type == at::kFloat ? "float32" : "bfloat16");
  return std::string(kernels::Name(info.param.set)) + "_" + type;
});

}  // namespace
}  // namespace ddl
