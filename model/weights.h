#ifndef DDL_MODEL_WEIGHTS_H_
#define DDL_MODEL_WEIGHTS_H_

#include <ATen/core/Tensor.h>

#include <string_view>
#include <vector>

#include "model/checkpoint.h"

namespace ddl {

// A stored tensor as LibTorch sees it: a view of the checkpoint's bytes, which must outlive it.
// Read-only: the bytes may be a read-only mapping.
at::Tensor WeightView(const TensorView& view);

// The same in `dtype`: the view itself where the stored type is that already, else a copy.
at::Tensor WeightAs(const TensorView& view, at::ScalarType dtype);

// All elements in float32, row-major. For the small weights that kernels read as they are.
std::vector<float> WeightFloats(const TensorView& view);

}  // namespace ddl

#endif  // DDL_MODEL_WEIGHTS_H_
