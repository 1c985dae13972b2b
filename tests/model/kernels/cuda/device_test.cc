#include <string>

#include "gtest/gtest.h"
#include "tests/model/kernels/cuda/memory.h"

namespace ddl::kernels {
namespace {

// The tables of the other files run on a GPU where there is one; where not, this says so once.
TEST(CudaDeviceTest, IsThere) {
  const std::string why = cuda::WhyUnavailable();
  if (!why.empty()) GTEST_SKIP() << why;
  void* const p = cuda::Allocate(16);
  EXPECT_NE(p, nullptr);
  cuda::Free(p);
}

}  // namespace
}  // namespace ddl::kernels
