#ifndef DDL_MODEL_LINEAR_H_
#define DDL_MODEL_LINEAR_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace ddl {

// y = W x without a bias. The weight is packed once, at load, in the order that the processor's
// matrix product reads: a copy that makes small batches two to three times as fast as packing in
// every call. Where oneDNN has no such product (bfloat16 without AVX-512; on another device), it
// stays as it is.
class Linear {
 public:
  Linear() = default;
  // `weights` [out_i, in] each, of one floating type: their rows are stacked, so that several
  // products of the same input are one.
  explicit Linear(const std::vector<at::Tensor>& weights);

  // x [rows, in] of the weights' type, contiguous -> [rows, sum of out_i]. With packed weights a
  // row of the result depends on that row of x only, bit for bit, whatever the number of rows.
  at::Tensor operator()(const at::Tensor& x) const;

  // The fewest rows that are multiplied. Fewer are copied first: a caller that has room for as many
  // rather passes them all, and ignores the rest of the result. oneDNN sums a single row in another
  // order than several, and few float32 rows in another than many; rows beside them, whatever they
  // hold, bring every product into the one order.
  int64_t min_rows() const { return min_rows_; }

  int64_t out_features() const { return out_features_; }

 private:
  at::Tensor weight_;  // packed, or [out, in]
  bool is_packed_ = false;
  int64_t min_rows_ = 1;
  int64_t out_features_ = 0;
};

}  // namespace ddl

#endif  // DDL_MODEL_LINEAR_H_
