#include "model/kv_cache.h"

#include <ATen/ops/empty.h>

namespace ddl {

KvCache::KvCache(const Shape& shape, const at::TensorOptions& options) : shape_(shape) {
  // Not on huge pages: of all these tensors, in one and the same step, a new one of 2 MiB would
  // have to be found and cleared, and a stream would see that.
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    k_.push_back(at::empty({shape.blocks, shape.heads, shape.head_dim, shape.block_size}, options));
    v_.push_back(at::empty({shape.blocks, shape.heads, shape.block_size, shape.head_dim}, options));
  }
}

kernels::KvCache KvCache::layer(int64_t index) const {
  return {k_[index].data_ptr(), v_[index].data_ptr(), shape_.block_size};
}

Tails::Shape Tails::OfCompress(const Checkpoint& checkpoint) {
  if (checkpoint.variant() != Variant::kTc && checkpoint.variant() != Variant::kTcec) return {};
  const ModelConfig& config = checkpoint.config();
  const int64_t taps = checkpoint.Get("readout.shortconv.weight").shape[1];
  return {2 * config.num_hidden_layers + 1, (taps - 1) * config.hidden_size};
}

Tails::Shape Tails::OfShifts(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  if (!config.use_k_shift && !config.use_v_shift) return {};
  return {2 * config.num_hidden_layers, config.num_attention_heads * config.head_dim};
}

Tails::Tails(int64_t slots, const Shape& shape, at::Device device)
    : shape_(shape),
      values_(at::empty({slots, shape.count, shape.width},
                        at::TensorOptions().dtype(at::kFloat).device(device))) {}

}  // namespace ddl
