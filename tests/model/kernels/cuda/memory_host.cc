#include <cstring>

#include "tests/model/kernels/cuda/block.h"
#include "tests/model/kernels/cuda/host_memory.h"
#include "tests/model/kernels/cuda/memory.h"

namespace ddl::kernels::cuda {

std::string WhyUnavailable() { return ""; }
void* Allocate(size_t bytes) { return cuda_host::AllocateDeviceMemory(bytes); }
void Free(void* p) { cuda_host::FreeDeviceMemory(p); }
void CopyToDevice(void* to, const void* from, size_t bytes) {
  std::memcpy(cuda_host::OnHost(to), from, bytes);
}
void CopyToHost(void* to, const void* from, size_t bytes) {
  std::memcpy(to, cuda_host::OnHost(from), bytes);
}
void ChooseSchedule(unsigned schedule) { cuda_host::SetSchedule(schedule); }

}  // namespace ddl::kernels::cuda
