#ifndef DDL_MODEL_KV_CACHE_H_
#define DDL_MODEL_KV_CACHE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/kernels/kernels.h"

namespace ddl {

// Paged keys and values of every layer. Which blocks a sequence owns is the engine's business.
class KvCache {
 public:
  struct Shape {
    int64_t layers = 0;
    int64_t blocks = 0;
    int64_t heads = 0;
    int64_t block_size = 0;  // positions
    int64_t head_dim = 0;
  };

  KvCache() = default;
  // Of the type and on the device of `options`. On the CPU this reserves address space, and memory
  // is taken as blocks are first written; other devices give all of it at once.
  KvCache(const Shape& shape, const at::TensorOptions& options);

  kernels::KvCache layer(int64_t index) const;

 private:
  Shape shape_;
  std::vector<at::Tensor> k_;  // per layer [blocks, heads, head_dim, block_size]
  std::vector<at::Tensor> v_;  // per layer [blocks, heads, block_size, head_dim]
};

// What convolutions and shifts over tokens remember of each sequence: `count` vectors of
// `width` float32 numbers per slot.
class Tails {
 public:
  struct Shape {
    int64_t count = 0;  // 0: the model has no such tails
    int64_t width = 0;
  };
  // Of the token convolutions (TC): per boundary, [taps - 1, d].
  static Shape OfCompress(const Checkpoint& checkpoint);
  // Of the shifts of k and v: per layer o_k and o_v, [H * hd].
  static Shape OfShifts(const Checkpoint& checkpoint);

  Tails() = default;
  // Takes memory as KvCache does. What a slot holds until it is first written is undefined.
  Tails(int64_t slots, const Shape& shape, at::Device device);

  // Vector `index` of slot 0; the same vector of slot s lies s * stride() further.
  float* data(int64_t index) { return values_.data_ptr<float>() + index * shape_.width; }
  int64_t stride() const { return shape_.count * shape_.width; }

 private:
  Shape shape_;
  at::Tensor values_;  // [slots, count, width]
};

}  // namespace ddl

#endif  // DDL_MODEL_KV_CACHE_H_
