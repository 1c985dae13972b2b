#ifndef DDL_BENCH_GPU_H_
#define DDL_BENCH_GPU_H_

#include <cstddef>
#include <functional>
#include <string>

#include "model/kernels/cuda/cuda_kernels.h"

// What cuda_kernels_benchmark needs of a GPU. gpu.cc is the real one; its test has a twin that runs
// the kernels on the host. Not thread-safe; a failure of CUDA ends the process with a message.

namespace ddl::bench {

// Why nothing can run here, in one line; empty if it can.
std::string WhyNoGpu();
std::string GpuName();

// Device memory.
class GpuBuffer {
 public:
  // Holds `bytes` bytes of `pattern`, again and again.
  GpuBuffer(size_t bytes, const void* pattern, size_t pattern_bytes);
  ~GpuBuffer();
  GpuBuffer(const GpuBuffer&) = delete;
  GpuBuffer& operator=(const GpuBuffer&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// Bytes a second that a copy of a gigabyte moves, read and written together: too large for a cache.
double CopySpeedOnGpu();

// Seconds that the GPU takes for what `launch` launches on the default stream: the least of several
// measurements of the mean over many launches in a row.
double SecondsOnGpu(const std::function<void()>& launch);

// Ends the process unless the error is kSuccess.
void CheckLaunch(kernels::cuda::Error error, const std::string& kernel);

}  // namespace ddl::bench

#endif  // DDL_BENCH_GPU_H_
