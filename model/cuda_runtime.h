#ifndef DDL_MODEL_CUDA_RUNTIME_H_
#define DDL_MODEL_CUDA_RUNTIME_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "model/kernels/cuda/cuda_kernels.h"

// What cuda_device.cc needs of CUDA's runtime, and of LibTorch's on it. cuda_runtime.cc is the real
// one; the tests have a twin that runs on the host (tests/model/cuda_runtime_on_host.cc).

namespace ddl::cuda_runtime {

// GPU `index` as LibTorch names it. FAILED_PRECONDITION, in one line, when there is none.
absl::StatusOr<at::Device> Open(int index);

// The stream that LibTorch's operators of this thread run on: kernels go there too, so that all of
// a step runs in the order of the calls.
kernels::cuda::Stream CurrentStream();

// `bytes` of host memory from which a copy to the device need not be waited for.
at::Tensor Staging(int64_t bytes);

// What CUDA calls an error.
std::string ErrorText(kernels::cuda::Error error);

}  // namespace ddl::cuda_runtime

#endif  // DDL_MODEL_CUDA_RUNTIME_H_
