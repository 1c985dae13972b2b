#include "model/weights.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>

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

at::Tensor WeightAs(const TensorView& view, const at::TensorOptions& options) {
  return WeightView(view).to(options);
}

std::vector<float> WeightFloats(const TensorView& view) { return Floats(WeightView(view)); }

std::vector<float> Floats(const at::Tensor& tensor) {
  const at::Tensor floats = tensor.to(at::kCPU, at::kFloat).contiguous();
  const float* data = floats.const_data_ptr<float>();
  return std::vector<float>(data, data + floats.numel());
}

KernelFloats::KernelFloats(const std::vector<float>& values, at::Device device)
    : values_(at::tensor(values).to(device)) {}

}  // namespace ddl
