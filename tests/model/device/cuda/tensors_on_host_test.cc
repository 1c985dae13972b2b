// The twin of a GPU's memory, and of LibTorch's tensors in it: that what a GPU refuses is refused
// here, too.

#include "tests/model/device/cuda/tensors_on_host.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/kernels/cuda/cuda_kernels.h"
#include "tests/model/kernels/cuda/host_memory.h"

namespace ddl::cuda_runtime {
namespace {

namespace cuda = kernels::cuda;

class TensorsOnHostTest : public testing::Test {
 protected:
  const c10::InferenceMode inference_mode_;
  const at::TensorOptions on_device_ = at::TensorOptions().dtype(at::kFloat).device(DeviceOnHost());
};

TEST_F(TensorsOnHostTest, OperatorsComputeWhatTheCpuDoes) {
  const at::Tensor x = at::arange(12, at::kFloat).view({3, 4}), w = at::ones({5, 4});
  const at::Tensor x_there = x.to(on_device_), w_there = w.to(on_device_);
  EXPECT_TRUE(x_there.is_cuda());
  EXPECT_TRUE(at::linear(x_there, w_there).to(at::kCPU).equal(at::linear(x, w)));
  EXPECT_TRUE(x_there.narrow(0, 1, 2).add(1.0f).to(at::kCPU).equal(x.narrow(0, 1, 2).add(1.0f)));
  EXPECT_TRUE(x_there.t().contiguous().to(at::kCPU).equal(x.t()));
  at::Tensor changed = x_there.clone();
  changed.select(1, 2).fill_(7.0f);
  at::Tensor want = x.clone();
  want.select(1, 2).fill_(7.0f);
  EXPECT_TRUE(changed.to(at::kCPU).equal(want));
  EXPECT_EQ(at::mm(x_there.to(at::kBFloat16), w_there.to(at::kBFloat16).t(), at::kFloat)
                .to(at::kCPU)
                .sum()
                .item<float>(),
            5.0f * 66.0f);
}

TEST_F(TensorsOnHostTest, RefusesWhatIsTheHosts) {
  const at::Tensor there = at::ones({2, 2}, on_device_), here = at::ones({2, 2});
  std::vector<float> numbers(4);
  const std::vector<std::pair<std::string, std::function<void()>>> rows = {
      {"a weight of the host", [&] { at::linear(there, here); }},
      {"an input of the host", [&] { at::linear(here, there); }},
      {"a sum", [&] { there.add(here); }},
      {"indices of the host", [&] { there.index_select(0, at::arange(2, at::kInt)); }},
      {"a pointer of the host", [&] { at::from_blob(numbers.data(), {4}, on_device_); }},
      {"no pointer", [&] { at::from_blob(nullptr, {0}, on_device_); }},
  };
  for (const auto& [name, use] : rows) EXPECT_THROW(use(), c10::Error) << name;
}

using TensorsOnHostDeathTest = TensorsOnHostTest;

TEST_F(TensorsOnHostDeathTest, MemoryOfTheOtherSideEndsTheTest) {
  const at::Tensor there = at::ones({4}, on_device_);
  EXPECT_DEATH(static_cast<void>(*static_cast<volatile float*>(there.data_ptr())), "");
  EXPECT_DEATH(*static_cast<volatile float*>(there.data_ptr()) = 1.0f, "");
  std::vector<int32_t> here = {0};
  cuda::GatherRowsArgs args;
  args.d = 4;
  args.x = there.const_data_ptr();
  args.y = there.data_ptr();
  args.rows = here.data();
  EXPECT_DEATH(cuda::GatherRows(nullptr, 1, args), "rows points to .*, which is the host's memory");
}

// What nobody has written is not by chance what it was before.
TEST_F(TensorsOnHostTest, NewMemoryIsFullOfNaNs) {
  at::empty({64}, on_device_).fill_(1.0f);
  const at::Tensor numbers = at::empty({64}, on_device_).to(at::kCPU);
  EXPECT_TRUE(numbers.isnan().all().item<bool>());
}

}  // namespace
}  // namespace ddl::cuda_runtime
