#include "model/kernels/cpu/implementation.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

// One loop for each activation, so that those that can be are vectorised.
void ActivateHead(Activation activation, int64_t head_dim, float* z) {
  switch (activation) {
    case Activation::kIdentity:
      return;
    case Activation::kSilu:
      for (int64_t n = 0; n < head_dim; ++n) z[n] = Silu(z[n]);
      return;
    case Activation::kRelu:
      for (int64_t n = 0; n < head_dim; ++n) z[n] = z[n] > 0.0f ? z[n] : 0.0f;
      return;
    case Activation::kElu1:
      for (int64_t n = 0; n < head_dim; ++n) {
        z[n] = z[n] > 0.0f ? z[n] + 1.0f : expm1f(z[n]) + 1.0f;
      }
      return;
  }
}

void RotateHead(const AttentionInputArgs& args, int64_t position, float* z) {
  const int64_t half = args.rotary_dims / 2;
  const float* cosine = args.rope_cos + position * half;
  const float* sine = args.rope_sin + position * half;
  int64_t n = 0;
  for (; n + kLanes <= half; n += kLanes) {
    const Floats a = LoadVector(z + n), b = LoadVector(z + half + n);
    const Floats c = LoadVector(cosine + n), s = LoadVector(sine + n);
    StoreVector(z + n, a * c + b * (s * -1.0f));
    StoreVector(z + half + n, a * s + b * c);
  }
  for (; n < half; ++n) {
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
        Scratch scratch(Scratch::Bytes<float>(hd) + Scratch::Bytes<float>(args.d) +
                        Scratch::Bytes<T>(hd));
        float* z = scratch.Take<float>(hd);
        float* c = scratch.Take<float>(args.d);
        T* stored = scratch.Take<T>(hd);
        const bool shifts = args.k_shift.weight != nullptr || args.v_shift.weight != nullptr;
        for (int64_t t = begin; t < end; ++t) {
          const int64_t position = batch.position[t];
          const int64_t block = batch.block_table[batch.row_sequence[t] * batch.block_table_stride +
                                                  position / block_size];
          const int64_t offset = position % block_size;
          if (shifts) {
            const T* c_row = static_cast<const T*>(args.c) + t * args.d;
            LoadRow(c_row, args.d, c);
          }
          for (int64_t head = 0; head < args.heads; ++head) {
            const int64_t cache_base = (block * args.heads + head) * block_size * hd;
            T* q = Projection<T>(args, t, 0, head);
            LoadRow(q, hd, z);
            ActivateHead(args.q_activation, hd, z);
            RotateHead(args, position, z);
            if (args.q_norm != nullptr) NormHead(args.q_norm, args.norm_eps, hd, z);
            StoreRow(z, hd, q);

            const T* k = Projection<T>(args, t, 1, head);
            LoadRow(k, hd, z);
            if (args.k_shift.weight != nullptr) {
              ShiftHead<T>(batch, args, args.k_shift, 1, t, head, c, z);
            }
            ActivateHead(args.k_activation, hd, z);
            RotateHead(args, position, z);
            if (args.k_norm != nullptr) NormHead(args.k_norm, args.norm_eps, hd, z);
            T* k_cache = static_cast<T*>(args.cache.k) + cache_base + offset;
            StoreRow(z, hd, stored);  // rounded together, then scattered
            for (int64_t n = 0; n < hd; ++n) k_cache[n * block_size] = stored[n];

            const T* v = Projection<T>(args, t, 2, head);
            LoadRow(v, hd, z);
            if (args.v_shift.weight != nullptr) {
              ShiftHead<T>(batch, args, args.v_shift, 2, t, head, c, z);
            }
            T* v_cache = static_cast<T*>(args.cache.v) + cache_base + offset * hd;
            ActivateHead(args.v_activation, hd, z);
            StoreRow(z, hd, v_cache);
          }
        }
      });
  // After every row has read what was there.
  SaveShiftTails<T>(batch, args, args.k_shift, 1);
  SaveShiftTails<T>(batch, args, args.v_shift, 2);
}

}  // namespace

void Implementation::AttentionInput(const Batch& batch, const AttentionInputArgs& args) const {
  args.type == Type::kFloat32 ? AttentionInputTyped<float>(executor_, batch, args)
                              : AttentionInputTyped<BFloat16>(executor_, batch, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
