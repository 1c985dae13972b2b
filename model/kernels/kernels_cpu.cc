// The CPU bodies of kernels.h. Compiled several times, with DDL_KERNELS_NAMESPACE naming the
// instruction set that the compiler flags allow. For that reason nothing with external linkage may
// be instantiated here (no std:: templates): the linker would keep one copy for all, possibly one
// that the processor cannot run.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/kernels/kernels_cpu.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

// ---- Elements

struct BFloat16 {
  uint16_t bits;
};

inline float Load(const float* p) { return *p; }
inline float Load(const BFloat16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void Store(float* p, float value) { *p = value; }
inline void Store(BFloat16* p, float value) {  // round to nearest even
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// ---- Scalar functions, written so that loops over them vectorise

// exp(x) to about 1e-7 relative, by exp(x) = 2^n exp(r), |r| <= ln(2)/2.
inline float Exp(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = x * 1.44269504088896341f + shifter;
  const float n = shifted - shifter;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;  // ln(2) in two parts, so that r keeps its bits
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  const int32_t exponent = (bits - 0x4b400000 + 127) << 23;
  float scale;
  memcpy(&scale, &exponent, sizeof(scale));
  return p * scale;
}

inline float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }
inline float Silu(float x) { return x * Sigmoid(x); }

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

// ---- Sums. Sixteen partial sums in a fixed arrangement: fast, and the same number on every
// instruction set up to the contraction of a multiply and an add.

constexpr int64_t kLanes = 16;

struct Lanes {
  float lane[kLanes] = {};

  float Total() const {
    float sum[kLanes];
    memcpy(sum, lane, sizeof(sum));
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
      for (int64_t i = 0; i < width; ++i) sum[i] += sum[i + width];
    }
    return sum[0];
  }
};

inline float Dot(const float* a, const float* b, int64_t n) {
  Lanes sums;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) sums.lane[l] += a[i + l] * b[i + l];
  }
  for (int64_t l = 0; i + l < n; ++l) sums.lane[l] += a[i + l] * b[i + l];
  return sums.Total();
}

inline float SumOfSquares(const float* a, int64_t n) { return Dot(a, a, n); }

// ---- Scratch and threads

class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(aligned_alloc(64, (floats * sizeof(float) + 127) / 64 * 64))) {
    if (data_ == nullptr) abort();
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() { return data_; }

 private:
  float* data_;
};

template <typename Body>  // void(int64_t begin, int64_t end)
void ParallelFor(const Executor& executor, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  if (executor.parallel_for == nullptr) {
    body(0, n);
    return;
  }
  executor.parallel_for(
      n, grain,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<Body*>(&body));
}

// Rows handed to a thread at once, so that waking it pays.
int64_t RowGrain(int64_t work_per_row) {
  constexpr int64_t kMinimumWork = 16384;
  const int64_t rows = kMinimumWork / (work_per_row > 0 ? work_per_row : 1);
  return rows > 1 ? rows : 1;
}

// ---- Input expansion

template <typename T>
void ExpandInputTyped(const Executor& executor, int64_t tokens, const ExpandInputArgs& args) {
  const int64_t d = args.d, dv = args.dv, taps = args.taps;
  const T* embedding = static_cast<const T*>(args.embedding);
  ParallelFor(executor, tokens, RowGrain(d * dv * taps), [&](int64_t begin, int64_t end) {
    Scratch sums(d * dv);
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* ids = args.ids + t * taps;
      T* x = static_cast<T*>(args.x) + t * d * dv;
      if (args.conv == nullptr) {
        const T* e = embedding + ids[taps - 1] * d;
        for (int64_t i = 0; i < d; ++i) {
          for (int64_t j = 0; j < dv; ++j) x[i * dv + j] = e[i];
        }
        continue;
      }
      float* sum = sums.data();
      for (int64_t c = 0; c < d * dv; ++c) sum[c] = 0.0f;
      for (int64_t r = 0; r < taps; ++r) {
        if (ids[r] < 0) continue;  // before the start: e = 0
        const T* e = embedding + ids[r] * d;
        for (int64_t i = 0; i < d; ++i) {
          const float value = Load(e + i);
          for (int64_t j = 0; j < dv; ++j) {
            sum[i * dv + j] += args.conv[(i * dv + j) * taps + r] * value;
          }
        }
      }
      for (int64_t c = 0; c < d * dv; ++c) Store(x + c, sum[c]);
    }
  });
}

// ---- Sublayer boundary

// X += h, or X += beta k (v^T - k^T X) with k = h / sqrt(|h|^2 + k_eps^2). `x` [d, dv] is the row in
// float32, `h` [d] likewise.
void RewriteRow(const DeltaStepArgs& args, int64_t row, const float* h, float* x) {
  const int64_t d = args.d, dv = args.dv;
  if (args.rewrite == Rewrite::kAdd) {
    for (int64_t i = 0; i < d; ++i) x[i] += h[i];
    return;
  }
  const float inverse_norm = 1.0f / sqrtf(SumOfSquares(h, d) + args.k_eps * args.k_eps);
  const float beta = args.beta[row];
  for (int64_t j = 0; j < dv; ++j) {
    Lanes sums;  // (h . X[:, j])
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) sums.lane[l] += h[i + l] * x[(i + l) * dv + j];
    }
    for (int64_t l = 0; i + l < d; ++l) sums.lane[l] += h[i + l] * x[(i + l) * dv + j];
    const float projection = inverse_norm * sums.Total();
    const float step = inverse_norm * beta * (args.v[row * dv + j] - projection);
    for (int64_t k = 0; k < d; ++k) x[k * dv + j] += h[k] * step;
  }
}

// v and beta of the next sublayer from the un-normalised x_in and the normalised c, both [d].
void GateRow(const DeltaStepArgs& args, int64_t row, const float* x_in, const float* c) {
  const GateWeights& gate = args.gate;
  const int64_t d = args.d;
  float logit = gate.beta_bias;
  if (gate.beta_in == nullptr) {
    logit += Dot(gate.beta_weight, c, d);
  } else {
    for (int64_t n = 0; n < gate.beta_hidden; ++n) {
      logit += gate.beta_weight[n] * tanhf(Dot(gate.beta_in + n * d, c, d));
    }
  }
  args.beta[row] = 2.0f * Sigmoid(logit);
  float* v = args.v + row * args.dv;
  for (int64_t j = 0; j < args.dv; ++j) {
    if (gate.v_weight == nullptr) {
      v[j] = gate.v_constant;
      continue;
    }
    const float value = Dot(gate.v_weight + j * d, x_in, d) + gate.v_bias[j];
    v[j] = gate.v_sigmoid ? gate.v_scale * Sigmoid(value) : value;
  }
}

// RMSNorm of x_in into c [d] (scratch), both stored, then the gates.
template <typename T>
void NormAndGateRow(const DeltaStepArgs& args, int64_t row, const float* x_in, float* c) {
  const int64_t d = args.d;
  const float scale =
      1.0f / sqrtf(SumOfSquares(x_in, d) / static_cast<float>(d) + args.norm_eps);
  for (int64_t i = 0; i < d; ++i) c[i] = args.norm_weight[i] * (x_in[i] * scale);
  T* c_out = static_cast<T*>(args.c) + row * d;
  for (int64_t i = 0; i < d; ++i) Store(c_out + i, c[i]);
  if (args.x_in != nullptr) {
    T* x_in_out = static_cast<T*>(args.x_in) + row * d;
    for (int64_t i = 0; i < d; ++i) Store(x_in_out + i, x_in[i]);
  }
  if (args.gates) GateRow(args, row, x_in, c);
}

// The slot whose tails a sequence of the batch goes on from.
int64_t TailSource(const Batch& batch, int64_t sequence) {
  return batch.tail_source != nullptr ? batch.tail_source[sequence] : batch.slot[sequence];
}

// TC: x_in [tokens, d] in float32 from X, features [begin, end) of rows [first, last) of one
// sequence, from the tails at `source` (null: from the sequence's start) to those at `target`. The
// taps are added oldest first in float32, from X as stored, on every path: prefill, chunks and
// single tokens give the same bits.
template <typename T>
void CompressRows(const DeltaStepArgs& args, int64_t first, int64_t last, int64_t begin,
                  int64_t end, const float* source, float* target, float* x_in) {
  constexpr int64_t kMaxTaps = 64;
  const int64_t d = args.d, dv = args.dv, taps = args.taps;
  for (int64_t i = begin; i < end; ++i) {
    float partial[kMaxTaps] = {};  // a_1 ... a_{k-1}, then a zero that stays
    for (int64_t n = 0; source != nullptr && n + 1 < taps; ++n) partial[n] = source[n * d + i];
    for (int64_t t = first; t < last; ++t) {
      const T* x = static_cast<const T*>(args.x) + (t * d + i) * dv;
      const auto tap = [&](int64_t r) {
        const float* w = args.compress_weight + (r * d + i) * dv;
        float sum = 0.0f;
        for (int64_t j = 0; j < dv; ++j) sum += w[j] * Load(x + j);
        return sum;
      };
      x_in[t * d + i] = (taps > 1 ? partial[0] : 0.0f) + tap(taps - 1);
      for (int64_t n = 0; n + 1 < taps; ++n) {
        partial[n] = (n + 2 < taps ? partial[n + 1] : 0.0f) + tap(taps - 2 - n);
      }
    }
    for (int64_t n = 0; n + 1 < taps; ++n) target[n * d + i] = partial[n];
  }
}

// All rows of one sequence, one feature range: a run of rows up to each that saves its tails, and
// the rest.
template <typename T>
void CompressTokens(const Batch& batch, const DeltaStepArgs& args, int64_t sequence, int64_t begin,
                    int64_t end, float* x_in) {
  const auto tail = [&](int64_t slot) { return args.tail + slot * args.tail_stride; };
  int64_t first = batch.row_begin[sequence];
  const int64_t last = batch.row_begin[sequence + 1];
  const float* source = batch.position[first] > 0 ? tail(TailSource(batch, sequence)) : nullptr;
  for (int64_t t = first; batch.row_save != nullptr && t < last; ++t) {
    if (batch.row_save[t] < 0) continue;
    float* saved = tail(batch.row_save[t]);
    CompressRows<T>(args, first, t + 1, begin, end, source, saved, x_in);
    source = saved;
    first = t + 1;
  }
  // Without rows left, this copies what was saved last.
  CompressRows<T>(args, first, last, begin, end, source, tail(batch.slot[sequence]), x_in);
}

template <typename T>
void DeltaStepTyped(const Executor& executor, const Batch& batch, const DeltaStepArgs& args) {
  const int64_t d = args.d, dv = args.dv;
  const int64_t grain = RowGrain(8 * d * dv);
  const bool over_tokens = args.compress == Compress::kToken;

  // Rewrite, and with it all that needs no other row.
  ParallelFor(executor, batch.tokens, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch(d * dv + 3 * d);
    float* x = scratch.data();
    float* h = x + d * dv;
    float* x_in = h + d;
    float* c = x_in + d;
    for (int64_t t = begin; t < end; ++t) {
      T* x_row = static_cast<T*>(args.x) + t * d * dv;
      if (args.rewrite != Rewrite::kNone) {
        for (int64_t k = 0; k < d * dv; ++k) x[k] = Load(x_row + k);
        const T* h_row = static_cast<const T*>(args.h) + t * d;
        for (int64_t i = 0; i < d; ++i) h[i] = Load(h_row + i);
        RewriteRow(args, t, h, x);
        for (int64_t k = 0; k < d * dv; ++k) Store(x_row + k, x[k]);
      }
      if (over_tokens) continue;
      // From X as stored, so that fusing the rewrite and the read changes nothing.
      for (int64_t i = 0; i < d; ++i) {
        if (args.compress == Compress::kIdentity) {
          x_in[i] = Load(x_row + i);
          continue;
        }
        float sum = 0.0f;
        for (int64_t j = 0; j < dv; ++j) {
          sum += args.compress_weight[i * dv + j] * Load(x_row + i * dv + j);
        }
        x_in[i] = sum;
      }
      NormAndGateRow<T>(args, t, x_in, c);
    }
  });
  if (!over_tokens) return;

  Scratch x_in(batch.tokens * d);
  constexpr int64_t kFeatures = 64;
  const int64_t ranges = (d + kFeatures - 1) / kFeatures;
  ParallelFor(executor, batch.sequences * ranges, 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t from = item % ranges * kFeatures;
      const int64_t to = from + kFeatures < d ? from + kFeatures : d;
      CompressTokens<T>(batch, args, item / ranges, from, to, x_in.data());
    }
  });
  ParallelFor(executor, batch.tokens, grain, [&](int64_t begin, int64_t end) {
    Scratch c(d);
    for (int64_t t = begin; t < end; ++t) {
      NormAndGateRow<T>(args, t, x_in.data() + t * d, c.data());
    }
  });
}

// ---- Attention

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

void NormHead(const float* weight, float eps, int64_t head_dim, float* z) {
  const float scale =
      1.0f / sqrtf(SumOfSquares(z, head_dim) / static_cast<float>(head_dim) + eps);
  for (int64_t n = 0; n < head_dim; ++n) z[n] = weight[n] * (z[n] * scale);
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
  ParallelFor(executor, batch.tokens, RowGrain(8 * args.heads * hd), [&](int64_t begin,
                                                                         int64_t end) {
    Scratch scratch(hd + args.d);
    float* z = scratch.data();
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

// scores[p] = scale * q . k_p for one block of keys, [hd, block_size].
template <typename T>
void BlockScores(const float* q, const T* keys, int64_t head_dim, int64_t block_size, float scale,
                 float* scores) {
  for (int64_t p = 0; p < block_size; p += kLanes) {
    const int64_t width = block_size - p < kLanes ? block_size - p : kLanes;
    float sum[kLanes] = {};
    if (width == kLanes) {
      for (int64_t n = 0; n < head_dim; ++n) {
        for (int64_t l = 0; l < kLanes; ++l) sum[l] += q[n] * Load(keys + n * block_size + p + l);
      }
    } else {
      for (int64_t n = 0; n < head_dim; ++n) {
        for (int64_t l = 0; l < width; ++l) sum[l] += q[n] * Load(keys + n * block_size + p + l);
      }
    }
    for (int64_t l = 0; l < width; ++l) scores[p + l] = scale * sum[l];
  }
}

template <typename T>
void PagedAttentionTyped(const Executor& executor, const Batch& batch,
                         const PagedAttentionArgs& args) {
  const int64_t hd = args.head_dim, heads = args.heads, block_size = args.cache.block_size;
  const float scale = 1.0f / sqrtf(static_cast<float>(hd));
  // One item is one head of one row: its order of positions never depends on the batch.
  ParallelFor(executor, batch.tokens * heads, 1, [&](int64_t begin, int64_t end) {
    int64_t longest = 0;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t length = batch.position[item / heads] + 1;
      longest = length > longest ? length : longest;
    }
    Scratch scratch(2 * hd + longest + block_size);
    float* q = scratch.data();
    float* y = q + hd;
    float* scores = y + hd;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t t = item / heads, head = item % heads;
      const int64_t length = batch.position[t] + 1;
      const int32_t* block_table =
          batch.block_table + batch.row_sequence[t] * batch.block_table_stride;
      const auto cache_base = [&](int64_t p) {
        return (block_table[p / block_size] * heads + head) * block_size * hd;
      };
      const T* q_row = static_cast<const T*>(args.q) + t * args.q_stride + head * hd;
      for (int64_t n = 0; n < hd; ++n) q[n] = Load(q_row + n);

      for (int64_t p = 0; p < length; p += block_size) {
        BlockScores(q, static_cast<const T*>(args.cache.k) + cache_base(p), hd, block_size, scale,
                    scores + p);
      }
      float largest = scores[0];
      for (int64_t p = 1; p < length; ++p) largest = scores[p] > largest ? scores[p] : largest;
      for (int64_t p = 0; p < length; ++p) scores[p] = Exp(scores[p] - largest);
      float total = 0.0f;
      for (int64_t p = 0; p < length; ++p) total += scores[p];

      for (int64_t n = 0; n < hd; ++n) y[n] = 0.0f;
      for (int64_t p = 0; p < length; ++p) {
        const T* v =
            static_cast<const T*>(args.cache.v) + cache_base(p) + p % block_size * hd;
        const float weight = scores[p];
        for (int64_t n = 0; n < hd; ++n) y[n] += weight * Load(v + n);
      }
      const float inverse_total = 1.0f / total;
      for (int64_t n = 0; n < hd; ++n) y[n] *= inverse_total;

      if (args.norm_weight != nullptr) NormHead(args.norm_weight, args.norm_eps, hd, y);
      if (args.gate != nullptr) {
        const T* gate = static_cast<const T*>(args.gate) + item * hd;
        for (int64_t n = 0; n < hd; ++n) y[n] *= Silu(Load(gate + n));
      }
      T* y_row = static_cast<T*>(args.y) + item * hd;
      for (int64_t n = 0; n < hd; ++n) Store(y_row + n, y[n]);
    }
  });
}

// ---- MLP

template <typename T>
void SwiGluTyped(const Executor& executor, int64_t tokens, const SwiGluArgs& args) {
  const int64_t m = args.m;
  ParallelFor(executor, tokens, RowGrain(8 * m), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* a = static_cast<const T*>(args.ab) + t * 2 * m;
      const T* b = a + m;
      T* y = static_cast<T*>(args.y) + t * m;
      for (int64_t i = 0; i < m; ++i) Store(y + i, Silu(Load(a + i)) * Load(b + i));
    }
  });
}

// ---- Sampling

float SoftmaxWeightsCpu(const float* logits, int64_t n, float max, float inverse_temperature,
                        float* weights) {
  for (int64_t i = 0; i < n; ++i) weights[i] = Exp((logits[i] - max) * inverse_temperature);
  Lanes sums;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) sums.lane[l] += weights[i + l];
  }
  for (int64_t l = 0; i + l < n; ++l) sums.lane[l] += weights[i + l];
  return sums.Total();
}

// ---- Dispatch on the element type

void ExpandInputCpu(const Executor& executor, int64_t tokens, const ExpandInputArgs& args) {
  args.type == Type::kFloat32 ? ExpandInputTyped<float>(executor, tokens, args)
                              : ExpandInputTyped<BFloat16>(executor, tokens, args);
}
void DeltaStepCpu(const Executor& executor, const Batch& batch, const DeltaStepArgs& args) {
  args.type == Type::kFloat32 ? DeltaStepTyped<float>(executor, batch, args)
                              : DeltaStepTyped<BFloat16>(executor, batch, args);
}
void AttentionInputCpu(const Executor& executor, const Batch& batch,
                       const AttentionInputArgs& args) {
  args.type == Type::kFloat32 ? AttentionInputTyped<float>(executor, batch, args)
                              : AttentionInputTyped<BFloat16>(executor, batch, args);
}
void PagedAttentionCpu(const Executor& executor, const Batch& batch,
                       const PagedAttentionArgs& args) {
  args.type == Type::kFloat32 ? PagedAttentionTyped<float>(executor, batch, args)
                              : PagedAttentionTyped<BFloat16>(executor, batch, args);
}
void SwiGluCpu(const Executor& executor, int64_t tokens, const SwiGluArgs& args) {
  args.type == Type::kFloat32 ? SwiGluTyped<float>(executor, tokens, args)
                              : SwiGluTyped<BFloat16>(executor, tokens, args);
}

#define DDL_STRINGIFY_VALUE(name) #name
#define DDL_STRINGIFY(name) DDL_STRINGIFY_VALUE(name)

}  // namespace

const CpuKernels kCpuKernels = {DDL_STRINGIFY(DDL_KERNELS_NAMESPACE),
                                ExpandInputCpu,
                                DeltaStepCpu,
                                AttentionInputCpu,
                                PagedAttentionCpu,
                                SwiGluCpu,
                                SoftmaxWeightsCpu};

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
