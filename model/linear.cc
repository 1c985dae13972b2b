#include "model/linear.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <optional>

namespace ddl {
namespace {

using at::Tensor;

// oneDNN's products on prepacked weights are operators without a C++ header: they are reached
// through the dispatcher.
Tensor Pack(const Tensor& weight) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mkldnn::_reorder_linear_weight", "")
                             .typed<Tensor(const Tensor&, std::optional<c10::SymInt>)>();
  return op.call(weight, std::nullopt);
}

Tensor PackedProduct(const Tensor& x, const Tensor& packed) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&,
                        c10::string_view, c10::List<std::optional<at::Scalar>>,
                        std::optional<c10::string_view>)>();
  static const c10::List<std::optional<at::Scalar>> no_scalars;
  return op.call(x, packed, std::nullopt, "none", no_scalars, "");
}

// oneDNN multiplies bfloat16 only where these are (or AMX, which implies them).
bool CanPack(const Tensor& weight) {
  if (!weight.is_cpu()) return false;
#if defined(__x86_64__)
  const at::ScalarType type = weight.scalar_type();
  if (type == at::kBFloat16) {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
  }
  return type == at::kFloat && __builtin_cpu_supports("avx2");
#else
  return false;
#endif
}

}  // namespace

Linear::Linear(const std::vector<Tensor>& weights) {
  const Tensor stacked = weights.size() == 1 ? weights[0] : at::cat(weights);
  out_features_ = stacked.size(0);
  is_packed_ = CanPack(stacked);
  // Where oneDNN's order of sums was seen to change: tests/model/linear_test.cc.
  if (is_packed_) min_rows_ = stacked.scalar_type() == at::kFloat ? 16 : 2;
  weight_ = is_packed_ ? Pack(stacked) : stacked;
}

Tensor Linear::operator()(const Tensor& x) const {
  if (!is_packed_) return at::linear(x, weight_);
  const int64_t rows = x.size(0);
  if (rows >= min_rows_) return PackedProduct(x, weight_);
  const Tensor padded = at::zeros({min_rows_, x.size(1)}, x.options());
  padded.narrow(0, 0, rows).copy_(x);
  return PackedProduct(padded, weight_).narrow(0, 0, rows);
}

}  // namespace ddl
