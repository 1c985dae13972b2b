#include "model/cuda_runtime.h"

#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cmath>
#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ddl::cuda_runtime {
namespace {

// LibTorch's operators for the GPU, which register themselves. Not linked, but loaded where there
// is a GPU: elsewhere a start would read 3 GB of libraries for nothing, and all threads' stacks
// would have to hold their thread-local storage, for which those of the HTTP server are too small.
absl::Status LoadOperators() {
  static void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (library != nullptr) return absl::OkStatus();
  const char* const error = dlerror();
  return absl::FailedPreconditionError(absl::StrCat("LibTorch's CUDA part cannot be loaded: ",
                                                    error != nullptr ? error : "unknown error"));
}

}  // namespace

absl::StatusOr<at::Device> Open() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();  // so that nobody else finds it
    return absl::FailedPreconditionError(
        absl::StrCat("this machine has no GPU that CUDA can use: ",
                     error != cudaSuccess ? ErrorText(error) : "no device was found"));
  }
  if (absl::Status status = LoadOperators(); !status.ok()) return status;
  return at::Device(at::kCUDA, 0);
}

kernels::cuda::Stream CurrentStream() { return c10::cuda::getCurrentCUDAStream().stream(); }

at::Tensor Staging(int64_t bytes) {
  return at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
}

std::string ErrorText(kernels::cuda::Error error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

bool HasFlashAttention(at::ScalarType type, int64_t head_dim) {
  return type == at::kBFloat16 && head_dim % 8 == 0 && head_dim <= 256;
}

at::Tensor FlashAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& row_begin, const at::Tensor& position_begin,
                          int64_t most_rows, int64_t longest) {
  // FlashAttention-2 aligns its causal mask to the last row and the last position, unlike
  // scaled_dot_product_attention, which therefore refuses the mask where q is shorter than k.
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(2)));
  return std::get<0>(at::_flash_attention_forward(q, k, v, row_begin, position_begin, most_rows,
                                                  longest, /*dropout_p=*/0.0, /*is_causal=*/true,
                                                  /*return_debug_mask=*/false, scale));
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
