#ifndef DDL_MODEL_LINEAR_H_
#define DDL_MODEL_LINEAR_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/huge_pages.h"
#include "model/kernels/cpu/cpu_kernels.h"
#include "model/runner_options.h"

namespace ddl {

// What the matrix products of a model have in common.
struct LinearOptions {
  // Multiplies, and must outlive the products; null: LibTorch does, where the weights are.
  const kernels::CpuKernels* kernels = nullptr;
  HugePages* memory = nullptr;  // for what `kernels` packs; not null where that is not
  Quantization quantization = Quantization::kNone;  // else weights are bfloat16 and on the CPU
  // > 0, where LibTorch multiplies: every product has so many rows, one slice after the other. For
  // one shape cuBLAS uses one algorithm, so that a row's result depends on that row only there,
  // too.
  int64_t rows_at_once = 0;
};

// y = W x without a bias. On the CPU the weight is packed once, at load, in the order that our
// kernels read. Elsewhere it stays as it is, and LibTorch multiplies.
class Linear {
 public:
  Linear() = default;
  // `weights` [out_i, in] each, of one floating type: their rows are stacked, so that several
  // products of one input are a single one.
  Linear(const std::vector<at::Tensor>& weights, const LinearOptions& options);

  // x [rows, in] of the weights' type, contiguous -> [rows, sum of out_i]. By our kernels a row of
  // the result depends on that row of x only, bit for bit, whatever the number of rows. `out` [at
  // least rows, sum of out_i] of that type takes the result where our kernels multiply; undefined:
  // new memory. Allocating megabytes in every step costs more than some kernels do.
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& out = {}) const;
  // The same in float32, not rounded to the weights' type first where our kernels or cuBLAS
  // multiply.
  at::Tensor ToFloat(const at::Tensor& x, const at::Tensor& out = {}) const;

  // That of the first `n` outputs, or of all if there are fewer. Shares the weights.
  Linear FirstOutputs(int64_t n) const;

  int64_t in_features() const { return kernels_ != nullptr ? packed_.k : weight_.size(1); }
  int64_t out_features() const { return out_features_; }

 private:
  at::Tensor InSlices(const at::Tensor& x, at::ScalarType type) const;
  at::Tensor Multiply(const at::Tensor& x, at::ScalarType type, const at::Tensor& out) const;

  const kernels::CpuKernels* kernels_ = nullptr;
  at::Tensor weight_;             // packed, or [out, in]
  at::Tensor scales_;             // of int8, as kernels::PackedWeight has them
  at::Tensor sums_;               // likewise
  kernels::PackedWeight packed_;  // points into them
  int64_t rows_at_once_ = 0;
  int64_t out_features_ = 0;
};

}  // namespace ddl

#endif  // DDL_MODEL_LINEAR_H_
