#ifndef DDL_TESTS_MODEL_KERNELS_CUDA_SESSION_H_
#define DDL_TESTS_MODEL_KERNELS_CUDA_SESSION_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "tests/model/kernels/cuda/memory.h"

namespace ddl::kernels {

// Copies of host tensors where the CUDA kernels run, for one call. Each is exactly as large as the
// original, so that AddressSanitizer sees an access past it; and as aligned to 16 bytes as the
// original is, so that sliced tensors stay sliced.
class CudaSession {
 public:
  CudaSession() = default;
  ~CudaSession();
  CudaSession(const CudaSession&) = delete;
  CudaSession& operator=(const CudaSession&) = delete;

  template <typename T>
  T* In(T* host, size_t bytes) {
    return static_cast<T*>(const_cast<void*>(Copy(host, bytes)));
  }
  // Likewise, and CopyBack() brings back what the kernels made of it.
  template <typename T>
  T* InOut(T* host, size_t bytes) {
    T* const device = In(host, bytes);
    if (host != nullptr) changed_.push_back({host, device, bytes});
    return device;
  }
  void CopyBack();

 private:
  struct Changed {
    void* host;
    const void* device;
    size_t bytes;
  };
  const void* Copy(const void* host, size_t bytes);

  std::vector<void*> allocated_;
  std::vector<Changed> changed_;
};

}  // namespace ddl::kernels

#endif  // DDL_TESTS_MODEL_KERNELS_CUDA_SESSION_H_
