#include "model/huge_pages.h"

#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>
#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace ddl {

at::Tensor EmptyOnHugePages(at::IntArrayRef sizes, at::ScalarType type) {
  constexpr size_t kHugePage = size_t{1} << 21;  // bytes, on x86-64
  constexpr size_t kPage = 4096;
  size_t bytes = c10::elementSize(type);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  const size_t whole = bytes / kHugePage * kHugePage;
  void* memory = nullptr;
  if (posix_memalign(&memory, whole > 0 ? kHugePage : kPage, bytes) != 0) throw std::bad_alloc();
  // Only whole ones: part of the last would be wasted.
  // An error means that there are none, or that they are disabled: ordinary pages do as well.
  if (whole > 0) static_cast<void>(madvise(memory, whole, MADV_HUGEPAGE));
  return at::from_blob(
      memory, sizes, [](void* data) { std::free(data); }, at::TensorOptions().dtype(type));
}

}  // namespace ddl
