// The twin of bench/gpu.cc: the kernels run on this machine (tests/model/kernels/cuda/block.h),
// each once.

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/check.h"
#include "bench/gpu.h"
#include "tests/model/kernels/cuda/host_memory.h"

namespace ddl::bench {

std::string WhyNoGpu() { return ""; }
std::string GpuName() { return "host"; }

GpuBuffer::GpuBuffer(size_t bytes, const void* pattern, size_t pattern_bytes)
    : data_(kernels::cuda_host::AllocateDeviceMemory(bytes)) {
  auto* const on_host = static_cast<char*>(kernels::cuda_host::OnHost(data_));
  for (size_t done = 0; done < bytes; done += pattern_bytes) {
    std::memcpy(on_host + done, pattern, std::min(pattern_bytes, bytes - done));
  }
}

GpuBuffer::~GpuBuffer() { kernels::cuda_host::FreeDeviceMemory(data_); }

double CopySpeedOnGpu() { return 1e10; }  // such a copy would be most of a test's time

double SecondsOnGpu(const std::function<void()>& launch) {
  const auto start = std::chrono::steady_clock::now();
  launch();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void CheckLaunch(kernels::cuda::Error error, const std::string& /*kernel*/) {
  DDL_CHECK(error == kernels::cuda::kSuccess, "the launch was accepted");
}

}  // namespace ddl::bench
