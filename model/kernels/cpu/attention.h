#ifndef DDL_MODEL_KERNELS_CPU_ATTENTION_H_
#define DDL_MODEL_KERNELS_CPU_ATTENTION_H_

#include "model/kernels/cpu/cpu_kernels.h"
#include "model/kernels/cpu/vector.h"

// What attention by vectors (paged_attention.cc) and by tiles (attention_tiles.cc) have in common.

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

// Where a physical block's keys and values begin, in elements, for a head of the sequence that
// `row` belongs to.
inline int64_t BlockOffset(const Batch& batch, const PagedAttentionArgs& args, int64_t row,
                           int64_t head, int64_t block) {
  const int32_t* table = batch.block_table + batch.row_sequence[row] * batch.block_table_stride;
  return (table[block] * args.heads + head) * args.cache.block_size * args.head_dim;
}

// The scores of one row, of which the first `length` count, become softmax's weights, without the
// division by their sum, which is returned. The others, up to `padded`, a whole number of vectors,
// become 0.
inline float Softmax(int64_t length, int64_t padded, float* scores) {
  const int64_t last = (length - 1) / kLanes * kLanes;  // the vector that may hold some of both
  for (int64_t p = length; p < last + kLanes; ++p) scores[p] = scores[0];
  Floats largest = LoadVector(scores);
  for (int64_t p = kLanes; p <= last; p += kLanes) {
    const Floats next = LoadVector(scores + p);
    DDL_UNROLL for (int i = 0; i < kParts; ++i) {
      largest.part[i] = next.part[i] > largest.part[i] ? next.part[i] : largest.part[i];
    }
  }
  float lanes[kLanes];
  StoreVector(lanes, largest);
  float max = lanes[0];
  for (int64_t l = 1; l < kLanes; ++l) max = lanes[l] > max ? lanes[l] : max;
  Floats sums = Broadcast(0.0f);
  for (int64_t p = 0; p <= last; p += kLanes) {
    Floats weights = LoadVector(scores + p);
    DDL_UNROLL for (int i = 0; i < kParts; ++i) weights.part[i] = Exp(weights.part[i] - max);
    StoreVector(scores + p, weights);
    if (p < last) sums = sums + weights;
  }
  for (int64_t p = length; p < padded; ++p) scores[p] = 0.0f;
  return Total(sums + LoadVector(scores + last));
}

// y [hd], a row's sum of values for one head, becomes the output: divided by the sum of the
// weights, norm and gate, stored.
template <typename T>
inline void FinishHead(const PagedAttentionArgs& args, int64_t row, int64_t head, float total,
                       float* y) {
  const int64_t hd = args.head_dim, offset = (row * args.heads + head) * hd;
  const float inverse = 1.0f / total;
  // Adding 0 makes -0 a 0: values of weight 0, of positions that only other rows see, may have done
  // so or not.
  for (int64_t n = 0; n < hd; ++n) y[n] = y[n] * inverse + 0.0f;
  if (args.norm_weight != nullptr) NormHead(args.norm_weight, args.norm_eps, hd, y);
  if (args.gate != nullptr) {
    const T* gate = static_cast<const T*>(args.gate) + offset;
    for (int64_t n = 0; n < hd; ++n) y[n] *= Silu(Load(gate + n));
  }
  StoreRow(y, hd, static_cast<T*>(args.y) + offset);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE

#endif  // DDL_MODEL_KERNELS_CPU_ATTENTION_H_
