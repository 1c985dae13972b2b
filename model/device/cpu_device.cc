#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>

#include <utility>

#include "base/check.h"
#include "base/thread_pool.h"
#include "model/device/device.h"

namespace ddl {
namespace {

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(std::unique_ptr<const kernels::CpuKernels> kernels)
      : kernels_(std::move(kernels)) {}

  std::string name() const override { return "cpu"; }
  at::Device tensors() const override { return at::kCPU; }
  bool is_async() const override { return false; }
  int64_t matmul_rows() const override { return 0; }      // our own kernels' sums have one order
  int64_t matmul_multiple() const override { return 1; }  // packing pads by itself
  const kernels::Kernels& kernels() const override { return *kernels_; }
  const kernels::CpuKernels& host_kernels() const override { return *kernels_; }
  const kernels::CpuKernels* matmul_kernels() const override { return kernels_.get(); }
  StepInput Upload(const kernels::Batch& batch, const StepIds& ids) const override {
    DDL_CHECK(ids.pending == nullptr, "pending tokens of the CPU, which samples none");
    return {.batch = batch, .ids = ids.ids.data(), .memory = {}, .attention_plan = {}};
  }
  std::unique_ptr<DecodeGraphs> MakeDecodeGraphs(const DecodeGraphShape& /*shape*/) const override {
    return nullptr;
  }
  std::unique_ptr<Event> RecordEvent() const override { return nullptr; }
  at::Tensor GatherRows(const at::Tensor& x, absl::Span<const int32_t> rows) const override {
    const at::Tensor index =
        at::from_blob(const_cast<int32_t*>(rows.data()), {static_cast<int64_t>(rows.size())},
                      at::TensorOptions().dtype(at::kInt));
    return at::index_select(x, 0, index);
  }
  bool CanSample(const SampleRequest& /*request*/) const override { return false; }
  std::unique_ptr<PendingTokens> SampleTokens(
      const at::Tensor& /*logits*/, absl::Span<const SampleRequest> /*requests*/) const override {
    DDL_CHECK(false, "SampleTokens of the CPU, where CanSample is false");
    return nullptr;
  }
  absl::Status Health() const override { return absl::OkStatus(); }
  std::optional<DeviceMemory> memory() const override { return std::nullopt; }
  void ReleaseUnusedMemory() const override {}

 private:
  const std::unique_ptr<const kernels::CpuKernels> kernels_;
};

}  // namespace

std::unique_ptr<const kernels::CpuKernels> MakeCpuKernels(kernels::InstructionSet set,
                                                          ThreadPool* threads) {
  const auto parallel_for = [](void* pool, int64_t n, int64_t grain, kernels::Executor::Body body,
                               void* context) {
    static_cast<ThreadPool*>(pool)->ParallelFor(
        n, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
  };
  return kernels::MakeCpuKernels(set, {.parallel_for = parallel_for, .threads = threads});
}

std::unique_ptr<Device> MakeCpuDevice(std::unique_ptr<const kernels::CpuKernels> kernels) {
  return std::make_unique<CpuDevice>(std::move(kernels));
}

}  // namespace ddl
