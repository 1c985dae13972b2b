#include "tests/model/cuda_runtime_on_host.h"

#include <ATen/ops/empty.h>

namespace ddl::cuda_runtime {

OnHost on_host;

absl::StatusOr<at::Device> Open() { return at::Device(at::kCPU); }

kernels::cuda::Stream CurrentStream() {
  TORCH_CHECK(on_host.stream_error.empty(), on_host.stream_error);
  return nullptr;
}

at::Tensor Staging(int64_t bytes) { return at::empty({bytes}, at::kByte); }

std::string ErrorText(kernels::cuda::Error error) { return "error " + std::to_string(error); }

absl::Status Health() { return on_host.health; }

DeviceMemory Memory() { return on_host.memory; }

void ReleaseUnused() {}

}  // namespace ddl::cuda_runtime
