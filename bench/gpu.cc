#include "bench/gpu.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace ddl::bench {
namespace {

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s failed: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

}  // namespace

std::string WhyNoGpu() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return "";
  return std::string("this machine has no GPU that CUDA can use: ") +
         (error != cudaSuccess ? cudaGetErrorString(error) : "no device was found");
}

std::string GpuName() {
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  return properties.name;
}

GpuBuffer::GpuBuffer(size_t bytes, const void* pattern, size_t pattern_bytes) {
  Check(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), "cudaMalloc");
  for (size_t done = 0; done < bytes; done += pattern_bytes) {
    Check(cudaMemcpy(static_cast<char*>(data_) + done, pattern,
                     std::min(pattern_bytes, bytes - done), cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
}

GpuBuffer::~GpuBuffer() { cudaFree(data_); }

double SecondsOnGpu(const std::function<void()>& launch) {
  constexpr int kMeasurements = 5, kLaunches = 20;
  cudaEvent_t start, end;
  Check(cudaEventCreate(&start), "cudaEventCreate");
  Check(cudaEventCreate(&end), "cudaEventCreate");
  launch();  // loads the kernel
  double best = 0.0;
  for (int measurement = 0; measurement < kMeasurements; ++measurement) {
    Check(cudaEventRecord(start, nullptr), "cudaEventRecord");
    for (int i = 0; i < kLaunches; ++i) launch();
    Check(cudaEventRecord(end, nullptr), "cudaEventRecord");
    Check(cudaEventSynchronize(end), "a kernel");
    float milliseconds = 0.0f;
    Check(cudaEventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
    const double seconds = 1e-3 * static_cast<double>(milliseconds) / kLaunches;
    if (measurement == 0 || seconds < best) best = seconds;
  }
  Check(cudaEventDestroy(start), "cudaEventDestroy");
  Check(cudaEventDestroy(end), "cudaEventDestroy");
  return best;
}

double CopySpeedOnGpu() {
  constexpr size_t kBytes = size_t{1} << 30;
  const std::vector<unsigned char> pattern(size_t{1} << 20, 0x3e);
  const GpuBuffer from(kBytes, pattern.data(), pattern.size()),
      to(kBytes, pattern.data(), pattern.size());
  const double seconds = SecondsOnGpu([&] {
    Check(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, nullptr),
          "cudaMemcpyAsync");
  });
  return 2.0 * static_cast<double>(kBytes) / seconds;
}

void CheckLaunch(kernels::cuda::Error error, const std::string& kernel) {
  Check(static_cast<cudaError_t>(error), kernel.c_str());
}

}  // namespace ddl::bench
