#include "model/linear.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "base/check.h"

namespace ddl {
namespace {

using at::Tensor;

kernels::WeightType WeightTypeOf(at::ScalarType type, Quantization quantization) {
  if (quantization == Quantization::kInt8) {
    DDL_CHECK(type == at::kBFloat16, "int8 is made of bfloat16");
    return kernels::WeightType::kInt8;
  }
  return type == at::kFloat ? kernels::WeightType::kFloat32 : kernels::WeightType::kBFloat16;
}

// `n` rows of x [rows, k] from `first` on. Those past its end are whatever its storage has there,
// if that is long enough, else zeros: their results are not used.
Tensor WholeSlice(const Tensor& x, int64_t first, int64_t n) {
  const int64_t rows = x.size(0), k = x.size(1);
  if (first + n <= rows) return x.narrow(0, first, n);
  const int64_t end = x.storage_offset() + (first + n) * k;
  if (x.is_contiguous() &&
      end * static_cast<int64_t>(x.element_size()) <= static_cast<int64_t>(x.storage().nbytes())) {
    return x.as_strided({n, k}, {k, 1}, x.storage_offset() + first * k);
  }
  const Tensor padded = at::zeros({n, k}, x.options());
  padded.narrow(0, 0, rows - first).copy_(x.narrow(0, first, rows - first));
  return padded;
}

}  // namespace

Linear::Linear(const std::vector<Tensor>& weights, const LinearOptions& options)
    : kernels_(options.kernels), rows_at_once_(options.rows_at_once) {
  for (const Tensor& weight : weights) out_features_ += weight.size(0);
  if (kernels_ == nullptr) {
    DDL_CHECK(options.quantization == Quantization::kNone,
              "LibTorch multiplies what is not quantized");
    weight_ = weights.size() == 1 ? weights[0].contiguous() : at::cat(weights);
    return;
  }
  std::vector<Tensor> kept;
  std::vector<kernels::WeightRows> parts;
  for (const Tensor& weight : weights) {
    kept.push_back(weight.contiguous());
    parts.push_back({kept.back().const_data_ptr(), weight.size(0)});
  }
  packed_.type = WeightTypeOf(kept[0].scalar_type(), options.quantization);
  packed_.n = out_features_;
  packed_.k = kept[0].size(1);
  weight_ =
      options.memory->Empty({kernels_->PackedBytes(packed_.type, packed_.n, packed_.k)}, at::kByte);
  packed_.data = weight_.data_ptr();
  if (packed_.type == kernels::WeightType::kInt8) {
    scales_ = at::empty({kernels::PaddedColumns(packed_.n)}, at::kFloat);
    sums_ = at::empty({kernels::PaddedColumns(packed_.n)}, at::kInt);
    packed_.scales = scales_.data_ptr<float>();
    packed_.sums = sums_.data_ptr<int32_t>();
  }
  kernels_->Pack(parts.data(), static_cast<int64_t>(parts.size()), packed_);
}

Tensor Linear::Multiply(const Tensor& x, at::ScalarType type, const Tensor& out) const {
  const int64_t rows = x.size(0);
  const Tensor y = out.defined() ? out.narrow(0, 0, rows)
                                 : at::empty({rows, out_features_}, x.options().dtype(type));
  kernels::MatMulArgs args;
  args.weight = packed_;
  args.x = x.const_data_ptr();
  args.y_type = type == at::kFloat ? kernels::Type::kFloat32 : kernels::Type::kBFloat16;
  args.y = y.data_ptr();
  kernels_->MatMul(rows, args);
  return y;
}

Linear Linear::FirstOutputs(int64_t n) const {
  Linear first = *this;
  first.out_features_ = std::min(n, out_features_);
  if (kernels_ != nullptr) {
    first.packed_.n = first.out_features_;  // the first panels are those of the first outputs
  } else {
    first.weight_ = weight_.narrow(0, 0, first.out_features_);
  }
  return first;
}

Tensor Linear::InSlices(const Tensor& x, at::ScalarType type) const {
  const int64_t n = rows_at_once_, slices = (x.size(0) + n - 1) / n;
  const Tensor y = at::empty({slices * n, out_features_}, x.options().dtype(type));
  for (int64_t slice = 0; slice < slices; ++slice) {
    const Tensor rows = WholeSlice(x, slice * n, n);
    Tensor out = y.narrow(0, slice * n, n);
    if (type == x.scalar_type()) {
      at::mm_out(out, rows, weight_.t());
    } else {
      at::mm_out(out, rows, weight_.t(), type);
    }
  }
  return y.narrow(0, 0, x.size(0));
}

Tensor Linear::operator()(const Tensor& x, const Tensor& out) const {
  if (kernels_ != nullptr) return Multiply(x, x.scalar_type(), out);
  return rows_at_once_ > 0 ? InSlices(x, x.scalar_type()) : at::linear(x, weight_);
}

Tensor Linear::ToFloat(const Tensor& x, const Tensor& out) const {
  if (kernels_ != nullptr) return Multiply(x, at::kFloat, out);
  if (rows_at_once_ > 0) return InSlices(x, at::kFloat);
  // cuBLAS has its sums in float32 anyway.
  if (x.is_cuda() && x.scalar_type() == at::kBFloat16) return at::mm(x, weight_.t(), at::kFloat);
  return (*this)(x).to(at::kFloat);
}

}  // namespace ddl
