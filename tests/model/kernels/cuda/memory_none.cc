// In place of cuda_memory_device.cc where the build has no nvcc: there is nothing to run.

#include <cstdlib>

#include "tests/model/kernels/cuda/memory.h"

namespace ddl::kernels::cuda {

std::string WhyUnavailable() { return "needs a GPU, and a build with -D DDL_CUDA=ON"; }
void* Allocate(size_t) { std::abort(); }
void Free(void*) { std::abort(); }
void CopyToDevice(void*, const void*, size_t) { std::abort(); }
void CopyToHost(void*, const void*, size_t) { std::abort(); }
void ChooseSchedule(unsigned) { std::abort(); }

}  // namespace ddl::kernels::cuda
