#include "model/kv_cache.h"

#include <ATen/ops/empty.h>

namespace ddl {

KvCache::KvCache(const Shape& shape, at::ScalarType dtype) : shape_(shape) {
  const at::TensorOptions options = at::TensorOptions().dtype(dtype);
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    k_.push_back(
        at::empty({shape.blocks, shape.heads, shape.head_dim, shape.block_size}, options));
    v_.push_back(
        at::empty({shape.blocks, shape.heads, shape.block_size, shape.head_dim}, options));
  }
}

kernels::KvCache KvCache::layer(int64_t index) const {
  return {k_[index].data_ptr(), v_[index].data_ptr(), shape_.block_size};
}

Tails::Tails(int64_t slots, int64_t count, int64_t width)
    : count_(count), width_(width), values_(slots * count * width) {}

}  // namespace ddl
