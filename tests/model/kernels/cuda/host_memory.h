#ifndef DDL_TESTS_MODEL_KERNELS_CUDA_HOST_MEMORY_H_
#define DDL_TESTS_MODEL_KERNELS_CUDA_HOST_MEMORY_H_

#include <cstddef>

#include "model/kernels/cuda/cuda_kernels.h"

// The memory of the device that the tests have in place of a GPU. It is in this process, but not
// the host's: whoever touches it at the device's address outside a kernel gets a segmentation
// fault, and a launch whose arguments point anywhere else ends the process with a line that says
// so. Without this, confusing the two, which breaks the first step on a GPU, would go unnoticed.

namespace ddl::kernels::cuda_host {

// Aligned to a page. Every byte is 0xff at first, a NaN in each type: what is read before it was
// written shows. AddressSanitizer sees an access of a kernel past the end.
void* AllocateDeviceMemory(size_t bytes);
void FreeDeviceMemory(void* p);
bool IsDeviceMemory(const void* p);
// Where the host finds what is at an address of the device: for copies, and for what is computed on
// the host in its place.
void* OnHost(const void* p);

// Scopes in which the device's memory can be touched at its own addresses: what a kernel is. They
// nest.
class DeviceMemoryAccess {
 public:
  DeviceMemoryAccess();
  ~DeviceMemoryAccess();
  DeviceMemoryAccess(const DeviceMemoryAccess&) = delete;
  DeviceMemoryAccess& operator=(const DeviceMemoryAccess&) = delete;
};

// An argument of a launch on `blocks` blocks: every pointer in it is null or the device's memory,
// or the process ends.
template <typename Value>
void CheckArgument(const Value& /*number*/, size_t /*blocks*/) {}
void CheckPointer(const void* p, const char* what);
template <typename Element>
void CheckArgument(Element* const& p, size_t /*blocks*/) {
  CheckPointer(p, "a kernel's argument");
}
void CheckArgument(const Batch& batch, size_t blocks);
void CheckArgument(const ExpandInputArgs& args, size_t blocks);
void CheckArgument(const DeltaStepArgs& args, size_t blocks);
void CheckArgument(const AttentionInputArgs& args, size_t blocks);
void CheckArgument(const PagedAttentionArgs& args, size_t blocks);
void CheckArgument(const SwiGluArgs& args, size_t blocks);
void CheckArgument(const cuda::GatherContextArgs& args, size_t blocks);
void CheckArgument(const cuda::GatherRowsArgs& args, size_t blocks);
void CheckArgument(const cuda::FillIdsArgs& args, size_t blocks);
void CheckArgument(const cuda::SampleTokensArgs& args, size_t blocks);  // a block takes a row

}  // namespace ddl::kernels::cuda_host

#endif  // DDL_TESTS_MODEL_KERNELS_CUDA_HOST_MEMORY_H_
