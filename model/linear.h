#ifndef DDL_MODEL_LINEAR_H_
#define DDL_MODEL_LINEAR_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/model_runner.h"

namespace ddl {

// y = W x without a bias. On the CPU the weight is packed once, at load, in the order that the
// product reads: a copy, bfloat16 for our own kernel (kernels::Product; where the processor has
// AMX, for oneDNN), float32 for oneDNN. Elsewhere it stays as it is, and LibTorch multiplies.
class Linear {
 public:
  Linear() = default;
  // `weights` [out_i, in] each, of one floating type: their rows are stacked, so that several
  // products of the same input are one.
  // Quantized, they are bfloat16 and on the CPU.
  explicit Linear(const std::vector<at::Tensor>& weights,
                  Quantization quantization = Quantization::kNone);

  // x [rows, in] of the weights' type, contiguous -> [rows, sum of out_i]. With packed weights a
  // row of the result depends on that row of x only, bit for bit, whatever the number of rows.
  // `room` [at least rows, sum of out_i] of that type takes the result where the product can be
  // told to put it there; undefined: new memory. Taking megabytes afresh in every step costs more
  // than some kernels do.
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& room = {}) const;
  // The same in float32, not rounded to the weights' type first where it is our kernels'.
  at::Tensor ToFloat(const at::Tensor& x, const at::Tensor& room = {}) const;

  // The fewest rows that are multiplied. Fewer are copied first: a caller that has room for as many
  // rather passes them all, and ignores the rest of the result. oneDNN sums a single row in another
  // order than several, and few float32 rows in another than many; rows beside them, whatever they
  // hold, bring every product into the one order.
  int64_t min_rows() const { return min_rows_; }

  int64_t out_features() const { return out_features_; }

 private:
  enum class By { kLibTorch, kOneDnn, kKernel, kQuantizedKernel };

  bool is_by_kernel() const { return product_ == By::kKernel || product_ == By::kQuantizedKernel; }
  at::Tensor ByKernel(const at::Tensor& x, at::ScalarType result, const at::Tensor& room) const;

  By product_ = By::kLibTorch;
  at::Tensor weight_;  // packed, or [out, in]
  at::Tensor scales_;  // of kQuantizedKernel, as kernels::QuantizedWeight
  at::Tensor sums_;    // likewise
  int64_t min_rows_ = 1;
  int64_t out_features_ = 0;
};

}  // namespace ddl

#endif  // DDL_MODEL_LINEAR_H_
