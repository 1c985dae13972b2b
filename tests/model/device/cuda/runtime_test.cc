// What runtime.h promises of graphs and copies: on the host of the device's twin, on a GPU of
// CUDA and LibTorch.

#include "model/device/cuda/runtime.h"

#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "tests/model/device/tested_device.h"

namespace ddl::cuda_runtime {
namespace {

class CudaRuntimeTest : public testing::Test {
 protected:
  CudaRuntimeTest() {
    TestedDevice();
    options_ = at::TensorOptions().dtype(at::kFloat).device(Open().value());
  }

  // Of tensors that are full of one number.
  static float Value(const at::Tensor& tensor) {
    const at::Tensor on_host = tensor.to(at::kCPU);
    EXPECT_EQ(on_host.min().item<float>(), on_host.max().item<float>());
    return on_host.max().item<float>();
  }

  const c10::InferenceMode inference_mode_;
  at::TensorOptions options_;
};

TEST_F(CudaRuntimeTest, ReplaysReadAndWriteWhatIsThereByThen) {
  const at::Tensor in = at::full({3, 16}, 1.0f, options_);
  const at::Tensor weight = at::full({32, 16}, 0.5f, options_);
  const at::Tensor product = at::full({3, 32}, 0.0f, options_);
  const at::Tensor sum = at::full({3, 16}, 0.0f, options_);
  // Each takes memory for what lies between; both take the same.
  const auto multiplies = Capture([&] { product.copy_(at::linear(in, weight).mul(2.0f)); });
  const auto adds = Capture([&] { sum.copy_(in.add(1.0f).add(in)); });
  for (const float value : {3.0f, -2.0f, 7.0f}) {
    const std::string what = "input " + std::to_string(value);
    in.fill_(value);
    product.fill_(0.0f);
    sum.fill_(0.0f);
    multiplies->Replay();
    adds->Replay();
    in.fill_(100.0f);  // comes after both
    EXPECT_EQ(Value(product), value * 16.0f) << what;
    EXPECT_EQ(Value(sum), 2.0f * value + 1.0f) << what;
  }
}

TEST_F(CudaRuntimeTest, ACopyIsOfWhatWasThereWhenItWasAskedFor) {
  const at::Tensor numbers = at::full({1 << 20}, 1.0f, options_);
  const auto first = CopyToHost(numbers);
  numbers.fill_(2.0f);
  const auto second = CopyToHost(numbers);
  numbers.fill_(3.0f);
  CopyToHost(numbers);  // nobody waits
  RecordEvent()->Wait();
  EXPECT_EQ(Value(second->Wait()), 2.0f);
  EXPECT_EQ(Value(first->Wait()), 1.0f);
}

TEST_F(CudaRuntimeTest, WorkThatThrowsLeavesEverythingUsable) {
  const at::Tensor number = at::full({4}, 1.0f, options_);
  for (const int failing_call : {1, 2}) {
    int calls = 0;
    const auto work = [&] {
      number.add_(1.0f);
      TORCH_CHECK(++calls != failing_call, "this call fails");
    };
    EXPECT_THROW(Capture(work), c10::Error) << failing_call;
    EXPECT_EQ(calls, failing_call);
    number.fill_(1.0f);
    EXPECT_EQ(Value(number), 1.0f) << failing_call;
    const auto graph = Capture([&] { number.add_(1.0f); });
    number.fill_(1.0f);
    graph->Replay();
    graph->Replay();
    EXPECT_EQ(Value(number), 3.0f) << failing_call;
    EXPECT_TRUE(Health().ok()) << failing_call;
  }
}

}  // namespace
}  // namespace ddl::cuda_runtime
