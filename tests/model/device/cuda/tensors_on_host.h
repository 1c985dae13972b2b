#ifndef DDL_TESTS_MODEL_DEVICE_CUDA_TENSORS_ON_HOST_H_
#define DDL_TESTS_MODEL_DEVICE_CUDA_TENSORS_ON_HOST_H_

#include <ATen/core/Tensor.h>

// LibTorch's CUDA device for tests without a GPU: tensors of device type CUDA whose memory is that
// of tests/model/kernels/cuda/host_memory.h. Operators compute on the CPU what they are asked for,
// and throw, as LibTorch's own do, when a tensor of the host is among their arguments, or memory of
// the host is to be a tensor of the device. Not for a program that loads libtorch_cuda.so, which
// has the real one.

namespace ddl::cuda_runtime {

// The device. What links this has it registered before main().
at::Device DeviceOnHost();

}  // namespace ddl::cuda_runtime

#endif  // DDL_TESTS_MODEL_DEVICE_CUDA_TENSORS_ON_HOST_H_
