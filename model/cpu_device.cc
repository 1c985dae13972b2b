#include <ATen/Parallel.h>

#include "model/check.h"
#include "model/device.h"

namespace ddl {
namespace {

void ParallelForOnTorchThreads(int64_t n, int64_t grain, kernels::Executor::Body body,
                               void* context) {
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

class CpuDevice final : public Device {
 public:
  std::string name() const override { return "cpu"; }
  at::Device tensors() const override { return at::kCPU; }
  int64_t product_multiple() const override { return 1; }  // packing pads by itself
  kernels::Executor executor() const override { return CpuExecutor(); }
  StepInput Upload(const kernels::Batch& batch, absl::Span<const int32_t> ids) const override {
    return {.batch = batch, .ids = ids.data(), .memory = {}};
  }
  bool CanDraw(const SampleRequest& /*request*/) const override { return false; }
  std::vector<SampledToken> DrawTokens(
      const at::Tensor& /*logits*/, absl::Span<const SampleRequest> /*requests*/) const override {
    DDL_CHECK(false, "the CPU draws by Sample");
    return {};
  }
  absl::Status Health() const override { return absl::OkStatus(); }
  std::optional<DeviceMemory> memory() const override { return std::nullopt; }
  void ReleaseUnusedMemory() const override {}
};

}  // namespace

kernels::Executor CpuExecutor() {
  return {.parallel_for = ParallelForOnTorchThreads, .device = nullptr};
}

std::unique_ptr<Device> MakeCpuDevice() { return std::make_unique<CpuDevice>(); }

}  // namespace ddl
