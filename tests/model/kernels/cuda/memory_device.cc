#include <cuda_runtime_api.h>

#include "base/check.h"
#include "tests/model/kernels/cuda/memory.h"

namespace ddl::kernels::cuda {

std::string WhyUnavailable() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) return "";
  return std::string("needs a GPU: ") +
         (error == cudaSuccess ? "there is none" : cudaGetErrorString(error));
}

void* Allocate(size_t bytes) {
  void* p = nullptr;
  DDL_CHECK(cudaMalloc(&p, bytes) == cudaSuccess, "cudaMalloc");
  return p;
}
void Free(void* p) { DDL_CHECK(cudaFree(p) == cudaSuccess, "cudaFree"); }
void CopyToDevice(void* to, const void* from, size_t bytes) {
  DDL_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice) == cudaSuccess, "cudaMemcpy");
}
void CopyToHost(void* to, const void* from, size_t bytes) {
  DDL_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost) == cudaSuccess, "cudaMemcpy");
}
void ChooseSchedule(unsigned) {}

}  // namespace ddl::kernels::cuda
