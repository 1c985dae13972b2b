// The twin of bench/gpu.cc: the kernels run on this machine (tests/model/kernels/cuda/block.h),
// each once.

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/check.h"
#include "bench/gpu.h"

namespace ddl::bench {

std::string WhyNoGpu() { return ""; }
std::string GpuName() { return "host"; }

GpuBuffer::GpuBuffer(size_t bytes, const void* pattern, size_t pattern_bytes)
    : data_(new char[bytes]) {
  for (size_t done = 0; done < bytes; done += pattern_bytes) {
    std::memcpy(static_cast<char*>(data_) + done, pattern, std::min(pattern_bytes, bytes - done));
  }
}

GpuBuffer::~GpuBuffer() { delete[] static_cast<char*>(data_); }

void CopyOnGpu(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

double SecondsOnGpu(const std::function<void()>& launch) {
  const auto start = std::chrono::steady_clock::now();
  launch();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void CheckLaunch(kernels::cuda::Error error, const std::string& /*kernel*/) {
  DDL_CHECK(error == kernels::cuda::kSuccess, "the launch was accepted");
}

}  // namespace ddl::bench
