#ifndef DDL_MODEL_DEVICE_CUDA_STAGED_COPY_H_
#define DDL_MODEL_DEVICE_CUDA_STAGED_COPY_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace ddl {

// Arrays on their way to the device: put together in host memory, then sent as one copy.
class StagedCopy {
 public:
  explicit StagedCopy(at::Device device) : device_(device) {}

  // `*pointer`, which must live until Send, points to `count` elements and will to their copies; an
  // empty array becomes null.
  template <typename T>
  void Add(const T** pointer, int64_t count) {
    if (count == 0) *pointer = nullptr;
    if (*pointer == nullptr) return;
    items_.push_back({reinterpret_cast<const void**>(pointer), *pointer, bytes_,
                      count * static_cast<int64_t>(sizeof(T))});
    bytes_ = (bytes_ + items_.back().bytes + 15) / 16 * 16;
  }

  // Makes the pointers those of the device's memory, and copies what they pointed to once all are:
  // a struct that is itself an item arrives with the device's pointers in it. They go into
  // `memory`, which Send of another of the same sizes has returned, or into new memory.
  at::Tensor Send(at::Tensor memory = {});

 private:
  struct Item {
    const void** pointer;
    const void* host;
    int64_t offset;
    int64_t bytes;
  };
  const at::Device device_;
  std::vector<Item> items_;
  int64_t bytes_ = 0;
};

}  // namespace ddl

#endif  // DDL_MODEL_DEVICE_CUDA_STAGED_COPY_H_
