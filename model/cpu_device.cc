#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "model/check.h"
#include "model/device.h"

namespace ddl {
namespace {

// Several parts for each thread, which take them in turn: the rows of a chunk of a prompt differ in
// work, and a thread that had to let another program run leaves its parts to the others.
void ParallelForOnTorchThreads(int64_t n, int64_t grain, kernels::Executor::Body body,
                               void* context) {
  constexpr int64_t kPartsOfThread = 8;
  const int64_t threads = at::get_num_threads();
  const int64_t even = (n + threads * kPartsOfThread - 1) / (threads * kPartsOfThread);
  const int64_t size = std::max(grain, even);
  const int64_t parts = (n + size - 1) / size;
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, std::min(threads, parts), 1, [&](int64_t /*begin*/, int64_t /*end*/) {
    for (int64_t part = next++; part < parts; part = next++) {
      body(context, part * size, std::min(n, (part + 1) * size));
    }
  });
}

class CpuDevice final : public Device {
 public:
  std::string name() const override { return "cpu"; }
  at::Device tensors() const override { return at::kCPU; }
  int64_t product_multiple() const override { return 1; }  // packing pads by itself
  kernels::Executor executor() const override { return CpuExecutor(); }
  StepInput Upload(const kernels::Batch& batch, absl::Span<const int32_t> ids) const override {
    return {.batch = batch, .ids = ids.data(), .memory = {}, .attention_plan = {}};
  }
  std::unique_ptr<DecodeGraphs> MakeDecodeGraphs(const DecodeGraphShape& /*shape*/) const override {
    return nullptr;
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
