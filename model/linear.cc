#include "model/linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "model/device/device.h"
#include "model/huge_pages.h"
#include "model/kernels/kernels.h"

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

// Our own product takes bfloat16, faster than oneDNN in small batches and as fast in large ones,
// but not where the processor multiplies tiles in hardware.
bool HasTileProducts() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

bool CanPackByOneDnn(at::ScalarType type) {
#if defined(__x86_64__)
  return type == at::kBFloat16 ? HasTileProducts() : __builtin_cpu_supports("avx2");
#else
  static_cast<void>(type);
  return false;
#endif
}

// Calls body(row, rows) for parts of `n` rows, all but the last whole panels, on all threads.
template <typename Body>
void ForPanels(int64_t n, const Body& body) {
  constexpr int64_t kPanel = kernels::kProductPanel;
  at::parallel_for(0, kernels::NumPanels(n), 8, [&](int64_t begin, int64_t end) {
    body(begin * kPanel, std::min(end * kPanel, n) - begin * kPanel);
  });
}

Tensor PackByPanels(const Tensor& weight) {
  const int64_t n = weight.size(0), k = weight.size(1);
  const Tensor packed = EmptyOnHugePages({kernels::PackedWeightSize(n, k)}, at::kBFloat16);
  const auto* from = static_cast<const uint16_t*>(weight.const_data_ptr());
  auto* to = static_cast<uint16_t*>(packed.data_ptr());
  ForPanels(n, [&](int64_t row, int64_t rows) {
    kernels::PackWeight(from + row * k, rows, k, to + kernels::PackedWeightSize(row, k));
  });
  return packed;
}

}  // namespace

Linear::Linear(const std::vector<Tensor>& weights, Quantization quantization) {
  const Tensor stacked = weights.size() == 1 ? weights[0].contiguous() : at::cat(weights);
  const at::ScalarType type = stacked.scalar_type();
  out_features_ = stacked.size(0);
  if (quantization == Quantization::kInt8) {
    DDL_CHECK(stacked.is_cpu() && type == at::kBFloat16, "int8 is made of bfloat16 on the CPU");
    product_ = By::kQuantizedKernel;
    const int64_t n = stacked.size(0), k = stacked.size(1);
    weight_ = EmptyOnHugePages({kernels::QuantizedWeightSize(n, k)}, at::kChar);
    scales_ = at::empty({kernels::ToWholePanels(n)}, at::kFloat);
    sums_ = at::empty({kernels::ToWholePanels(n)}, at::kInt);
    const auto* from = static_cast<const uint16_t*>(stacked.const_data_ptr());
    ForPanels(n, [&](int64_t row, int64_t rows) {
      kernels::QuantizeWeight(from + row * k, rows, k,
                              weight_.data_ptr<int8_t>() + kernels::QuantizedWeightSize(row, k),
                              scales_.data_ptr<float>() + row, sums_.data_ptr<int32_t>() + row);
    });
  } else if (stacked.is_cpu() && CanPackByOneDnn(type)) {
    product_ = By::kOneDnn;
    // Where oneDNN's order of sums was seen to change: tests/model/linear_test.cc.
    min_rows_ = type == at::kFloat ? 16 : 2;
    weight_ = Pack(stacked);
  } else if (stacked.is_cpu() && type == at::kBFloat16) {
    product_ = By::kKernel;
    weight_ = PackByPanels(stacked);
  } else {
    weight_ = stacked;
  }
}

Tensor Linear::ByKernel(const Tensor& x, at::ScalarType result, const Tensor& room) const {
  const Tensor y = room.defined()
                       ? room.narrow(0, 0, x.size(0))
                       : at::empty({x.size(0), out_features_}, x.options().dtype(result));
  const auto with_operands = [&](auto args) {
    args.n = out_features_;
    args.k = x.size(1);
    args.x = x.const_data_ptr();
    args.y_type = result == at::kFloat ? kernels::Type::kFloat32 : kernels::Type::kBFloat16;
    args.y = y.data_ptr();
    return args;
  };
  if (product_ == By::kQuantizedKernel) {
    kernels::QuantizedProductArgs args;
    args.weight = {weight_.const_data_ptr<int8_t>(), scales_.const_data_ptr<float>(),
                   sums_.const_data_ptr<int32_t>()};
    kernels::QuantizedProduct(CpuExecutor(), x.size(0), with_operands(args));
  } else {
    kernels::ProductArgs args;
    args.weight = weight_.const_data_ptr();
    kernels::Product(CpuExecutor(), x.size(0), with_operands(args));
  }
  return y;
}

Tensor Linear::operator()(const Tensor& x, const Tensor& room) const {
  if (is_by_kernel()) return ByKernel(x, at::kBFloat16, room);
  if (product_ == By::kLibTorch) return at::linear(x, weight_);
  const int64_t rows = x.size(0);
  if (rows >= min_rows_) return PackedProduct(x, weight_);
  const Tensor padded = at::zeros({min_rows_, x.size(1)}, x.options());
  padded.narrow(0, 0, rows).copy_(x);
  return PackedProduct(padded, weight_).narrow(0, 0, rows);
}

Tensor Linear::ToFloat(const Tensor& x, const Tensor& room) const {
  return is_by_kernel() ? ByKernel(x, at::kFloat, room) : (*this)(x).to(at::kFloat);
}

}  // namespace ddl
