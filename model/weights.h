#ifndef DDL_MODEL_WEIGHTS_H_
#define DDL_MODEL_WEIGHTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/checkpoint/checkpoint.h"

namespace ddl {

// A stored tensor as LibTorch sees it: a view of the checkpoint's bytes, which must outlive it.
// Read-only: the bytes may be a read-only mapping.
at::Tensor WeightView(const TensorView& view);

// The same in the type and on the device of `options`: the view itself where it is that already,
// else a copy.
at::Tensor WeightAs(const TensorView& view, const at::TensorOptions& options);

// All elements in float32, row-major. For the small weights that kernels read as they are.
std::vector<float> WeightFloats(const TensorView& view);

// A tensor's elements in float32, row-major, from whatever device it is on.
std::vector<float> Floats(const at::Tensor& tensor);

// Small weights in float32, in the memory that a device's kernels read. A copy of the object shares
// them.
class KernelFloats {
 public:
  KernelFloats() = default;  // empty
  KernelFloats(const std::vector<float>& values, at::Device device);

  bool empty() const { return size() == 0; }
  int64_t size() const { return values_.defined() ? values_.numel() : 0; }
  const float* data() const { return empty() ? nullptr : values_.const_data_ptr<float>(); }

 private:
  at::Tensor values_;
};

}  // namespace ddl

#endif  // DDL_MODEL_WEIGHTS_H_
