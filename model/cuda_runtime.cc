#include "model/cuda_runtime.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ddl::cuda_runtime {
absl::StatusOr<at::Device> Open() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();  // so that nobody else finds it
    return absl::FailedPreconditionError(
        absl::StrCat("this machine has no GPU that CUDA can use: ",
                     error != cudaSuccess ? ErrorText(error) : "no device was found"));
  }
  return at::Device(at::kCUDA, 0);
}

kernels::cuda::Stream CurrentStream() { return c10::cuda::getCurrentCUDAStream().stream(); }

at::Tensor Staging(int64_t bytes) {
  return at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
}

std::string ErrorText(kernels::cuda::Error error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

absl::Status Health() {
  cudaGetLastError();  // what a failed launch left, which harms nobody else
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? absl::OkStatus() : absl::UnavailableError(ErrorText(error));
}

DeviceMemory Memory() {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return {};
  return {.free_bytes = static_cast<int64_t>(free), .total_bytes = static_cast<int64_t>(total)};
}

void ReleaseUnused() { c10::cuda::CUDACachingAllocator::emptyCache(); }

}  // namespace ddl::cuda_runtime
