// The sublayer boundary in plain loops, for what delta_step.cc has no vectors for: more value
// channels than half a vector holds. And the size of an update, which only readers of statistics
// ask for.

#include "model/kernels/cpu/implementation.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

// h . X[:, j] of a row in float32.
inline float DotColumn(const float* h, const float* x, int64_t d, int64_t dv, int64_t j) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += h[i + l] * x[(i + l) * dv + j];
  }
  for (int64_t l = 0; i + l < d; ++l) lanes[l] += h[i + l] * x[(i + l) * dv + j];
  return Total(LoadVector(lanes));
}

// X += r h, or X += r beta k (v^T - k^T X) with k = h / sqrt(|h|^2 + k_eps^2). `x` [d, dv] is the
// row in float32, `h` [d] likewise.
void RewriteRow(const DeltaStepArgs& args, int64_t row, const float* h, float* x) {
  const int64_t d = args.d, dv = args.dv;
  if (args.rewrite == Rewrite::kAdd) {
    for (int64_t i = 0; i < d; ++i) x[i] += args.residual_multiplier * h[i];
    return;
  }
  const float inverse_norm = 1.0f / sqrtf(SumOfSquares(h, d) + args.k_eps * args.k_eps);
  const float scale = args.residual_multiplier * inverse_norm * args.beta[row];
  for (int64_t j = 0; j < dv; ++j) {
    const float projection = inverse_norm * DotColumn(h, x, d, dv, j);
    const float step = scale * (args.v[row * dv + j] - projection);
    for (int64_t k = 0; k < d; ++k) x[k * dv + j] += h[k] * step;
  }
}

// The update's size beside the state's: it has rank one, so its norm is |r beta| |k| |v^T - k^T X|.
float UpdateRatio(const DeltaStepArgs& args, int64_t row, const float* h, const float* x) {
  const int64_t d = args.d, dv = args.dv;
  const float h_squared = SumOfSquares(h, d);
  const float x_squared = SumOfSquares(x, d * dv);
  if (x_squared == 0.0f) return 0.0f;
  const float inverse_norm = 1.0f / sqrtf(h_squared + args.k_eps * args.k_eps);
  float change_squared = 0.0f;
  for (int64_t j = 0; j < dv; ++j) {
    const float change = args.v[row * dv + j] - inverse_norm * DotColumn(h, x, d, dv, j);
    change_squared += change * change;
  }
  return fabsf(args.residual_multiplier * args.beta[row]) * inverse_norm * sqrtf(h_squared) *
         sqrtf(change_squared / x_squared);
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
  const float scale = 1.0f / sqrtf(SumOfSquares(x_in, d) / static_cast<float>(d) + args.norm_eps);
  for (int64_t i = 0; i < d; ++i) c[i] = args.norm_weight[i] * (x_in[i] * scale);
  T* c_out = static_cast<T*>(args.c) + row * d;
  for (int64_t i = 0; i < d; ++i) Store(c_out + i, c[i]);
  if (args.x_in != nullptr) {
    T* x_in_out = static_cast<T*>(args.x_in) + row * d;
    for (int64_t i = 0; i < d; ++i) Store(x_in_out + i, x_in[i]);
  }
  if (args.gates) GateRow(args, row, x_in, c);
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
void WideDeltaStepTyped(const Executor& executor, const Batch& batch, const DeltaStepArgs& args) {
  const int64_t d = args.d, dv = args.dv;
  const int64_t grain = RowGrain(8 * d * dv);
  const bool over_tokens = args.compress == Compress::kToken;

  // Rewrite, and with it all that needs no other row.
  ParallelFor(executor, batch.tokens, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch(Scratch::Bytes<float>(d * dv + 3 * d));
    float* x = scratch.Take<float>(d * dv + 3 * d);
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

  Scratch scratch(Scratch::Bytes<float>(batch.tokens * d));
  float* x_in = scratch.Take<float>(batch.tokens * d);
  constexpr int64_t kFeatures = 64;
  const int64_t ranges = (d + kFeatures - 1) / kFeatures;
  ParallelFor(executor, batch.sequences * ranges, 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t from = item % ranges * kFeatures;
      const int64_t to = from + kFeatures < d ? from + kFeatures : d;
      CompressTokens<T>(batch, args, item / ranges, from, to, x_in);
    }
  });
  ParallelFor(executor, batch.tokens, grain, [&](int64_t begin, int64_t end) {
    Scratch c_scratch(Scratch::Bytes<float>(d));
    float* c = c_scratch.Take<float>(d);
    for (int64_t t = begin; t < end; ++t) {
      NormAndGateRow<T>(args, t, x_in + t * d, c);
    }
  });
}

template <typename T>
void UpdateRatiosTyped(const Executor& executor, const Batch& batch, const DeltaStepArgs& args) {
  const int64_t d = args.d, dv = args.dv;
  ParallelFor(executor, batch.tokens, RowGrain(8 * d * dv), [&](int64_t begin, int64_t end) {
    Scratch scratch(Scratch::Bytes<float>(d * dv + d));
    float* x = scratch.Take<float>(d * dv + d);
    float* h = x + d * dv;
    for (int64_t t = begin; t < end; ++t) {
      const T* x_row = static_cast<const T*>(args.x) + t * d * dv;
      const T* h_row = static_cast<const T*>(args.h) + t * d;
      for (int64_t k = 0; k < d * dv; ++k) x[k] = Load(x_row + k);
      for (int64_t i = 0; i < d; ++i) h[i] = Load(h_row + i);
      args.update_ratio[t] = UpdateRatio(args, t, h, x);
    }
  });
}

}  // namespace

void Implementation::WideDeltaStep(const Batch& batch, const DeltaStepArgs& args) const {
  args.type == Type::kFloat32 ? WideDeltaStepTyped<float>(executor_, batch, args)
                              : WideDeltaStepTyped<BFloat16>(executor_, batch, args);
}

void Implementation::UpdateRatios(const Batch& batch, const DeltaStepArgs& args) const {
  args.type == Type::kFloat32 ? UpdateRatiosTyped<float>(executor_, batch, args)
                              : UpdateRatiosTyped<BFloat16>(executor_, batch, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
