// The twin of model/cuda_runtime.cc for tests without a GPU: the device's memory is the host's, and
// the kernels are the .cu files as C++ (tests/model/kernels/cuda_block.h).

#include <ATen/ops/empty.h>

#include "model/cuda_runtime.h"

namespace ddl::cuda_runtime {

absl::StatusOr<at::Device> Open(int /*index*/) { return at::Device(at::kCPU); }

kernels::cuda::Stream CurrentStream() { return nullptr; }

at::Tensor Staging(int64_t bytes) { return at::empty({bytes}, at::kByte); }

std::string ErrorText(kernels::cuda::Error error) { return "error " + std::to_string(error); }

}  // namespace ddl::cuda_runtime
