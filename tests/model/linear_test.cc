#include "model/linear.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/norm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sub.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

namespace ddl {
namespace {

struct Shape {
  int64_t out;
  int64_t in;
};

// Those of the goldens, the demo model, and the paper's small and medium sizes.
constexpr Shape kShapes[] = {{96, 32},    {170, 32},    {32, 85},     {256, 32},    {864, 288},
                             {4096, 288}, {1536, 288},  {288, 768},   {576, 192},   {1024, 192},
                             {192, 512},  {2304, 768},  {768, 768},   {4096, 768},  {768, 2048},
                             {8192, 768}, {3072, 1024}, {1024, 1024}, {5460, 1024}, {1024, 2730}};
constexpr int64_t kRows[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 128, 511};
constexpr int64_t kMostRows = 512;

// A row of the product has the same bits whatever the number of rows, as the first or the last.
TEST(LinearTest, ARowDoesNotDependOnTheOthers) {
  at::manual_seed(1);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(testing::Message()
                   << at::toString(type) << " [" << shape.out << ", " << shape.in << "]");
      const at::Tensor weight = at::randn({shape.out, shape.in}).mul(0.05).to(type);
      const at::Tensor x = at::randn({kMostRows, shape.in}).to(type);
      const Linear linear({weight});
      const at::Tensor expected = linear(x);
      const at::Tensor exact = at::linear(x.to(at::kDouble), weight.to(at::kDouble));
      const double tolerance = type == at::kFloat ? 1e-4 : 0.05;
      ASSERT_TRUE(at::allclose(expected.to(at::kDouble), exact, tolerance, tolerance));
      for (const int64_t rows : kRows) {
        const int64_t from = kMostRows - rows;
        EXPECT_TRUE(at::equal(linear(x.narrow(0, 0, rows)), expected.narrow(0, 0, rows)))
            << "the first " << rows;
        EXPECT_TRUE(
            at::equal(linear(x.narrow(0, from, rows).contiguous()), expected.narrow(0, from, rows)))
            << "the last " << rows;
      }
    }
  }
}

// int8 is near to what the weights give, with rows as independent of one another, in both types of
// result, and with several weights stacked.
TEST(LinearTest, QuantizedIsNear) {
  at::manual_seed(2);
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << "[" << shape.out << ", " << shape.in << "]");
    const at::Tensor weight = at::randn({shape.out, shape.in}).mul(0.05).to(at::kBFloat16);
    const at::Tensor x = at::randn({65, shape.in}).to(at::kBFloat16);
    const Linear linear({weight.narrow(0, 0, shape.out / 2),
                         weight.narrow(0, shape.out / 2, shape.out - shape.out / 2)},
                        Quantization::kInt8);
    const at::Tensor exact = at::linear(x.to(at::kFloat), weight.to(at::kFloat));
    const at::Tensor whole = linear.ToFloat(x);
    const double error =
        at::norm(at::sub(whole, exact)).item<double>() / at::norm(exact).item<double>();
    EXPECT_LT(error, 0.02);
    EXPECT_GT(error, 0.001) << "is it quantized?";
    EXPECT_TRUE(at::equal(linear(x), whole.to(at::kBFloat16)));
    for (const int64_t rows : {1, 2, 13, 64}) {
      EXPECT_TRUE(
          at::equal(linear.ToFloat(x.narrow(0, 65 - rows, rows)), whole.narrow(0, 65 - rows, rows)))
          << rows;
    }
  }
}

}  // namespace
}  // namespace ddl
