#ifndef DDL_TESTS_MODEL_DEVICE_CUDA_RUNTIME_ON_HOST_H_
#define DDL_TESTS_MODEL_DEVICE_CUDA_RUNTIME_ON_HOST_H_

#include <string>

#include "absl/status/status.h"
#include "model/device/cuda/runtime.h"

namespace ddl::cuda_runtime {

// The twin of model/device/cuda/runtime.cc for tests without a GPU: the device's tensors are those
// of tests/model/device/cuda/tensors_on_host.h, and the kernels are the .cu files as C++
// (tests/model/kernels/cuda/block.h). What only hardware can say, tests say here.
struct OnHost {
  absl::Status health;
  std::string stream_error;  // not empty: what launching anything throws
  std::string wait_error;    // not empty: what waiting for the stream throws
  // Off, every row is attended to by itself, and its bits do not depend on its chunk.
  bool flash_attention = false;
  std::string capture_error;  // not empty: what capturing a graph throws
  int captures = 0;
  int replays = 0;
  int copies_to_device = 0;  // StagedCopy's
  int copies_to_host = 0;    // CopyToHost's
  DeviceMemory memory = {.free_bytes = int64_t{1} << 30, .total_bytes = int64_t{1} << 30};
};
extern OnHost on_host;

}  // namespace ddl::cuda_runtime

#endif  // DDL_TESTS_MODEL_DEVICE_CUDA_RUNTIME_ON_HOST_H_
