#ifndef DDL_MODEL_BATCH_INVARIANCE_H_
#define DDL_MODEL_BATCH_INVARIANCE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "model/device/device.h"
#include "model/linear.h"

namespace ddl {

// Whether what is computed for a row depends, in its last bits, on the other rows of the batch. Our
// kernels guarantee that it does not and libraries guarantee nothing, so it is tried on every model
// that is loaded: random rows among many, among few and alone, in odd numbers.

// Where a row of `linear` has different bits in two batches: "row 33 of 67 has other bits in rows
// 33...33 alone, output 5". Empty: nowhere. Tries the first outputs only, which show the order of
// sums as well as all do in a small part of the time. `options` of its inputs.
std::string FindBatchDependence(const Linear& linear, const at::TensorOptions& options);

struct AttentionShape {
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t block_size = 0;  // of the K/V cache
};

// Likewise of attention over three sequences, whole and in chunks, together and alone. `options` of
// its inputs, on `device`.
std::string FindBatchDependence(const Device& device, const AttentionShape& shape,
                                const at::TensorOptions& options);

}  // namespace ddl

#endif  // DDL_MODEL_BATCH_INVARIANCE_H_
