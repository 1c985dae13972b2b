#include "model/huge_pages.h"

#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace ddl {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;  // bytes, on x86-64
constexpr size_t kRegion = 32 * kHugePage;
constexpr size_t kCacheLine = 64;

size_t RoundUp(size_t bytes, size_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

std::shared_ptr<std::byte> MakeRegion(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kHugePage, bytes) != 0) throw std::bad_alloc();
  // An error means that there are none, or that they are disabled: ordinary pages do as well.
  static_cast<void>(madvise(memory, bytes, MADV_HUGEPAGE));
  return {static_cast<std::byte*>(memory), [](std::byte* region) { std::free(region); }};
}

}  // namespace

at::Tensor HugePages::Empty(at::IntArrayRef sizes, at::ScalarType type) {
  size_t bytes = c10::elementSize(type);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  bytes = RoundUp(bytes, kCacheLine);
  if (bytes > size_ - used_) {
    size_ = std::max(kRegion, RoundUp(bytes, kHugePage));
    region_ = MakeRegion(size_);
    used_ = 0;
  }
  std::byte* const data = region_.get() + used_;
  used_ += bytes;
  return at::from_blob(
      data, sizes, [region = region_](void*) {}, at::TensorOptions().dtype(type));
}

}  // namespace ddl
