#include "model/kernels/cpu/bodies.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

inline float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kIdentity:
      return x;
    case Activation::kSilu:
      return Silu(x);
    case Activation::kRelu:
      return x > 0.0f ? x : 0.0f;
    case Activation::kElu1:
      return x > 0.0f ? x + 1.0f : expm1f(x) + 1.0f;
  }
  return x;
}

void RotateHead(const AttentionInputArgs& args, int64_t position, float* z) {
  const int64_t half = args.rotary_dims / 2;
  const float* cosine = args.rope_cos + position * half;
  const float* sine = args.rope_sin + position * half;
  for (int64_t n = 0; n < half; ++n) {
    const float a = z[n], b = z[half + n];
    z[n] = a * cosine[n] - b * sine[n];
    z[half + n] = a * sine[n] + b * cosine[n];
  }
}

// Row t's projection `which` (0 q, 1 k, 2 v) of one head, [hd].
template <typename T>
T* Projection(const AttentionInputArgs& args, int64_t t, int64_t which, int64_t head) {
  return static_cast<T*>(args.qkv) + ((t * 3 + which) * args.heads + head) * args.head_dim;
}

// z <- alpha o_{t-1} + (1 - alpha) o_t, where z holds o_t. `c` is the row in float32.
template <typename T>
void ShiftHead(const Batch& batch, const AttentionInputArgs& args, const Shift& shift,
               int64_t which, int64_t t, int64_t head, const float* c, float* z) {
  const int64_t hd = args.head_dim;
  const float alpha = Sigmoid(Dot(shift.weight + head * args.d, c, args.d));
  const int64_t sequence = batch.row_sequence[t];
  const bool first_row = t == batch.row_begin[sequence];
  const float* tail = shift.tail + TailSource(batch, sequence) * shift.tail_stride + head * hd;
  const T* previous_row = first_row ? nullptr : Projection<T>(args, t - 1, which, head);
  for (int64_t n = 0; n < hd; ++n) {
    float previous = 0.0f;
    if (batch.position[t] > 0) previous = first_row ? tail[n] : Load(previous_row + n);
    z[n] = alpha * previous + (1.0f - alpha) * z[n];
  }
}

template <typename T>
void SaveShiftTails(const Batch& batch, const AttentionInputArgs& args, const Shift& shift,
                    int64_t which) {
  if (shift.weight == nullptr) return;
  const int64_t width = args.heads * args.head_dim;
  const auto save = [&](int64_t t, int64_t slot) {
    float* tail = shift.tail + slot * shift.tail_stride;
    const T* row = Projection<T>(args, t, which, 0);
    for (int64_t n = 0; n < width; ++n) tail[n] = Load(row + n);
  };
  for (int64_t s = 0; s < batch.sequences; ++s) save(batch.row_begin[s + 1] - 1, batch.slot[s]);
  for (int64_t t = 0; batch.row_save != nullptr && t < batch.tokens; ++t) {
    if (batch.row_save[t] >= 0) save(t, batch.row_save[t]);
  }
}

template <typename T>
void AttentionInputTyped(const Executor& executor, const Batch& batch,
                         const AttentionInputArgs& args) {
  const int64_t hd = args.head_dim, block_size = args.cache.block_size;
  ParallelFor(
      executor, batch.tokens, RowGrain(8 * args.heads * hd), [&](int64_t begin, int64_t end) {
        Scratch scratch(Scratch::Bytes<float>(hd + args.d));
        float* z = scratch.Take<float>(hd + args.d);
        float* c = z + hd;
        const bool shifts = args.k_shift.weight != nullptr || args.v_shift.weight != nullptr;
        for (int64_t t = begin; t < end; ++t) {
          const int64_t position = batch.position[t];
          const int64_t block = batch.block_table[batch.row_sequence[t] * batch.block_table_stride +
                                                  position / block_size];
          const int64_t offset = position % block_size;
          if (shifts) {
            const T* c_row = static_cast<const T*>(args.c) + t * args.d;
            for (int64_t i = 0; i < args.d; ++i) c[i] = Load(c_row + i);
          }
          for (int64_t head = 0; head < args.heads; ++head) {
            const int64_t cache_base = (block * args.heads + head) * block_size * hd;
            T* q = Projection<T>(args, t, 0, head);
            for (int64_t n = 0; n < hd; ++n) z[n] = Activate(args.q_activation, Load(q + n));
            RotateHead(args, position, z);
            if (args.q_norm != nullptr) NormHead(args.q_norm, args.norm_eps, hd, z);
            for (int64_t n = 0; n < hd; ++n) Store(q + n, z[n]);

            const T* k = Projection<T>(args, t, 1, head);
            for (int64_t n = 0; n < hd; ++n) z[n] = Load(k + n);
            if (args.k_shift.weight != nullptr) {
              ShiftHead<T>(batch, args, args.k_shift, 1, t, head, c, z);
            }
            for (int64_t n = 0; n < hd; ++n) z[n] = Activate(args.k_activation, z[n]);
            RotateHead(args, position, z);
            if (args.k_norm != nullptr) NormHead(args.k_norm, args.norm_eps, hd, z);
            T* k_cache = static_cast<T*>(args.cache.k) + cache_base + offset;
            for (int64_t n = 0; n < hd; ++n) Store(k_cache + n * block_size, z[n]);

            const T* v = Projection<T>(args, t, 2, head);
            for (int64_t n = 0; n < hd; ++n) z[n] = Load(v + n);
            if (args.v_shift.weight != nullptr) {
              ShiftHead<T>(batch, args, args.v_shift, 2, t, head, c, z);
            }
            T* v_cache = static_cast<T*>(args.cache.v) + cache_base + offset * hd;
            for (int64_t n = 0; n < hd; ++n) Store(v_cache + n, Activate(args.v_activation, z[n]));
          }
        }
      });
  // After every row has read what was there.
  SaveShiftTails<T>(batch, args, args.k_shift, 1);
  SaveShiftTails<T>(batch, args, args.v_shift, 2);
}

}  // namespace

void AttentionInputBody(const Executor& executor, const Batch& batch,
                        const AttentionInputArgs& args) {
  args.type == Type::kFloat32 ? AttentionInputTyped<float>(executor, batch, args)
                              : AttentionInputTyped<BFloat16>(executor, batch, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
