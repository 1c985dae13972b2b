#include "tests/model/kernels/cuda/session.h"

namespace ddl::kernels {

CudaSession::~CudaSession() {
  for (void* p : allocated_) cuda::Free(p);
}

const void* CudaSession::Copy(const void* host, size_t bytes) {
  if (host == nullptr) return nullptr;
  const size_t offset = reinterpret_cast<uintptr_t>(host) % 16;
  allocated_.push_back(cuda::Allocate(offset + bytes));
  auto* const device = static_cast<unsigned char*>(allocated_.back()) + offset;
  cuda::CopyToDevice(device, host, bytes);
  return device;
}

void CudaSession::CopyBack() {
  for (const Changed& changed : changed_) {
    cuda::CopyToHost(changed.host, changed.device, changed.bytes);
  }
}

}  // namespace ddl::kernels
