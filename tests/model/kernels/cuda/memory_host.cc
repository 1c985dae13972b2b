#include <cstdlib>
#include <cstring>

#include "tests/model/kernels/cuda/block.h"
#include "tests/model/kernels/cuda/memory.h"

namespace ddl::kernels::cuda {

std::string WhyUnavailable() { return ""; }
void* Allocate(size_t bytes) { return std::malloc(bytes); }
void Free(void* p) { std::free(p); }
void CopyToDevice(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void CopyToHost(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void ChooseSchedule(unsigned schedule) { cuda_host::SetSchedule(schedule); }

}  // namespace ddl::kernels::cuda
