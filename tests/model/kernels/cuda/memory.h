#ifndef DDL_TESTS_MODEL_KERNELS_CUDA_MEMORY_H_
#define DDL_TESTS_MODEL_KERNELS_CUDA_MEMORY_H_

#include <cstddef>
#include <string>

// Where the CUDA kernels under test run: as fibers on this machine (cuda_memory_host.cc, with the
// kernels compiled as C++), or on a GPU (cuda_memory_device.cc, with the kernels from nvcc).
namespace ddl::kernels::cuda {

// Why nothing can run here; empty if it can.
std::string WhyUnavailable();

void* Allocate(size_t bytes);
void Free(void* p);
void CopyToDevice(void* to, const void* from, size_t bytes);
void CopyToHost(void* to, const void* from, size_t bytes);  // after all that was launched
// The order in which the host runs blocks and threads (block.h); a GPU has its own.
void ChooseSchedule(unsigned schedule);

}  // namespace ddl::kernels::cuda

#endif  // DDL_TESTS_MODEL_KERNELS_CUDA_MEMORY_H_
