#ifndef DDL_MODEL_CUDA_RUNTIME_H_
#define DDL_MODEL_CUDA_RUNTIME_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/device.h"
#include "model/kernels/cuda/cuda_kernels.h"

// What cuda_device.cc needs of CUDA's runtime, and of LibTorch's on it. cuda_runtime.cc is the real
// one; the tests have a twin that runs on the host (tests/model/cuda_runtime_on_host.cc).

namespace ddl::cuda_runtime {

// The first GPU that CUDA_VISIBLE_DEVICES leaves, as LibTorch names it. FAILED_PRECONDITION, in one
// line, when there is none.
absl::StatusOr<at::Device> Open();

// The stream that LibTorch's operators of this thread run on: kernels go there too, so that all of
// a step runs in the order of the calls.
kernels::cuda::Stream CurrentStream();

// `bytes` of host memory from which a copy to the device need not be waited for.
at::Tensor Staging(int64_t bytes);

// What CUDA calls an error.
std::string ErrorText(kernels::cuda::Error error);

// Waits for all that was launched. UNAVAILABLE after an error that CUDA does not recover from.
absl::Status Health();

DeviceMemory Memory();

// Gives back what LibTorch's allocator keeps for later.
void ReleaseUnused();

}  // namespace ddl::cuda_runtime

#endif  // DDL_MODEL_CUDA_RUNTIME_H_
