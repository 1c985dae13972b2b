#include "model/weights.h"

#include <ATen/ops/from_blob.h>

#include <cstddef>

namespace ddl {
namespace {

at::ScalarType ScalarTypeOf(StoredType type) {
  switch (type) {
    case StoredType::kFloat32:
      return at::kFloat;
    case StoredType::kBFloat16:
      return at::kBFloat16;
    case StoredType::kFloat16:
      return at::kHalf;
    case StoredType::kFloat64:
      return at::kDouble;
  }
  return at::kFloat;
}

}  // namespace

at::Tensor WeightView(const TensorView& view) {
  // from_blob wants a mutable pointer; nothing here writes through it.
  return at::from_blob(const_cast<std::byte*>(view.data), view.shape,
                       at::TensorOptions().dtype(ScalarTypeOf(view.type)));
}

at::Tensor WeightAs(const TensorView& view, at::ScalarType dtype) {
  return WeightView(view).to(dtype);
}

std::vector<float> WeightFloats(const TensorView& view) {
  const at::Tensor floats = WeightAs(view, at::kFloat);
  const float* data = floats.const_data_ptr<float>();
  return std::vector<float>(data, data + floats.numel());
}

}  // namespace ddl
