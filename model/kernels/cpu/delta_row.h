#ifndef DDL_MODEL_KERNELS_CPU_DELTA_ROW_H_
#define DDL_MODEL_KERNELS_CPU_DELTA_ROW_H_

#include "model/kernels/cpu/cpu_kernels.h"
#include "model/kernels/cpu/delta_lanes.h"
#include "model/kernels/cpu/vector.h"

// One row of a boundary: the projection k^T X, then the update, its rounding, the compress and the
// sums for the gates in one pass over X. `d` is a multiple of sixteen and dv one of 1, 2, 4 and 8.

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

// The weights of a boundary, for `d` features and kDv channels, both padded.
struct StepWeights {
  int64_t d = 0;
  int64_t taps = 0;
  const float* compress = nullptr;  // [d, kDv] or [taps, d, kDv]
  const float* norm = nullptr;      // [d]
  const float* beta = nullptr;      // [d]; null: not from c directly
  const float* v = nullptr;         // [kDv, d]; null: not from x_in
};

// A row's place in memory, padded likewise.
template <typename T>
struct RowMemory {
  T* x = nullptr;                  // [d, kDv]
  const T* h = nullptr;            // [d]
  const float* tail_in = nullptr;  // kToken [taps - 1, d]; may be tail_out
  float* tail_out = nullptr;
  float* x_in = nullptr;  // [d]
};

// What the gates are made of.
struct RowSums {
  float squares = 0.0f;  // |x_in|^2
  float beta = 0.0f;     // w_beta . (norm * x_in)
  float v[8] = {};       // W_v x_in
};

enum class Read : uint8_t { kNothing, kIdentity, kChannel, kToken };

// |h|^2 and h^T X.
template <typename T, int kDv>
DDL_INLINE void Project(int64_t d, const T* x, const T* h, float& squared, float (&products)[kDv]) {
  constexpr int kBlocks = kDv >= 4 ? 1 : 4 / kDv;  // enough sums that they need not wait
  Floats squares[kBlocks], sums[kBlocks][kDv];
  DDL_UNROLL for (int b = 0; b < kBlocks; ++b) {
    squares[b] = Broadcast(0.0f);
    DDL_UNROLL for (int s = 0; s < kDv; ++s) sums[b][s] = Broadcast(0.0f);
  }
  const auto add = [&]<int... kVectors>(int64_t i, int b, Sequence<kVectors...>)
      __attribute__((always_inline)) {
    const Floats h16 = LoadVector(h + i);
    squares[b] = squares[b] + h16 * h16;
    ((sums[b][kVectors] = sums[b][kVectors] +
                          Spread<kDv, kVectors>(h16) * LoadVector(x + i * kDv + kVectors * kLanes)),
     ...);
  };
  int64_t i = 0;
  for (; i + kBlocks * kLanes <= d; i += kBlocks * kLanes) {
    DDL_UNROLL for (int b = 0; b < kBlocks; ++b) add(i + b * kLanes, b, Vectors<kDv>());
  }
  for (; i < d; i += kLanes) add(i, 0, Vectors<kDv>());
  DDL_UNROLL for (int b = 1; b < kBlocks; ++b) {
    squares[0] = squares[0] + squares[b];
    DDL_UNROLL for (int s = 0; s < kDv; ++s) sums[0][s] = sums[0][s] + sums[b][s];
  }
  DDL_UNROLL for (int s = 1; s < kDv; ++s) sums[0][0] = sums[0][0] + sums[0][s];

  squared = Total(squares[0]);
  float lanes[kLanes];
  StoreVector(lanes, sums[0][0]);
  for (int j = 0; j < kDv; ++j) {
    products[j] = 0.0f;
    for (int l = j; l < kLanes; l += kDv) products[j] += lanes[l];
  }
}

#if defined(__AVX512BF16__)
// The same without a conversion of X: a product takes two neighbours of it, of which one has a
// factor of zero, and sums in float32.
template <int kDv>
DDL_INLINE void Project(int64_t d, const BFloat16* x, const BFloat16* h, float& squared,
                        float (&products)[kDv]) {
  static_assert(kPartLanes == 16);
  const auto add =
      [](PartFloats & sum, const auto& a, const auto& b) __attribute__((always_inline)) {
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  };
  // Lane f is (h[f], 0).
  const auto load_h = [h](int64_t i) __attribute__((always_inline)) {
    PartHalves halves;
    memcpy(&halves, h + i, sizeof(halves));
    return Widen(halves);
  };
  if constexpr (kDv == 1) {
    PartFloats squares[2] = {}, sums[2] = {};
    const auto neighbours = [&](int64_t i, int b) __attribute__((always_inline)) {
      PartWords x32, h32;
      memcpy(&x32, x + i, sizeof(x32));
      memcpy(&h32, h + i, sizeof(h32));
      add(squares[b], h32, h32);
      add(sums[b], x32, h32);
    };
    int64_t i = 0;
    for (; i + 4 * kLanes <= d; i += 4 * kLanes) {
      neighbours(i, 0);
      neighbours(i + 2 * kLanes, 1);
    }
    for (; i + 2 * kLanes <= d; i += 2 * kLanes) neighbours(i, 0);
    if (i < d) {
      PartHalves halves;
      memcpy(&halves, x + i, sizeof(halves));
      const PartWords h16 = load_h(i);
      add(squares[0], h16, h16);
      add(sums[0], Widen(halves), h16);
    }
    squared = Total({{squares[0] + squares[1]}});
    products[0] = Total({{sums[0] + sums[1]}});
  } else {
    constexpr int kVectorsOfX = kDv / 2;       // of 32 numbers, in sixteen features
    constexpr int kBlocks = kDv == 2 ? 2 : 1;  // enough sums that they need not wait
    PartFloats squares[kBlocks] = {}, even[kBlocks][kVectorsOfX] = {},
               odd[kBlocks][kVectorsOfX] = {};
    const auto block = [&]<int... kVectors>(int64_t i, int b, Sequence<kVectors...>)
        __attribute__((always_inline)) {
      const PartWords h16 = load_h(i);
      add(squares[b], h16, h16);
      const auto multiply = [&]<int kVector>(Sequence<kVector>) __attribute__((always_inline)) {
        // A lane has two numbers: the spread is that of half as many channels.
        const PartWords spread = reinterpret_cast<PartWords>(
            Spread<kDv / 2, kVector>({{reinterpret_cast<PartFloats>(h16)}}).part[0]);
        PartWords pairs;
        memcpy(&pairs, x + i * kDv + kVector * 2 * kLanes, sizeof(pairs));
        add(even[b][kVector], pairs, spread);
        add(odd[b][kVector], pairs, spread << 16);
      };
      (multiply(Sequence<kVectors>()), ...);
    };
    int64_t i = 0;
    for (; i + kBlocks * kLanes <= d; i += kBlocks * kLanes) {
      DDL_UNROLL for (int b = 0; b < kBlocks; ++b) block(i + b * kLanes, b, Vectors<kVectorsOfX>());
    }
    for (; i < d; i += kLanes) block(i, 0, Vectors<kVectorsOfX>());
    PartFloats even_sum = {}, odd_sum = {}, squares_sum = {};
    DDL_UNROLL for (int b = 0; b < kBlocks; ++b) {
      squares_sum = squares_sum + squares[b];
      DDL_UNROLL for (int s = 0; s < kVectorsOfX; ++s) {
        even_sum = even_sum + even[b][s];
        odd_sum = odd_sum + odd[b][s];
      }
    }
    squared = Total({{squares_sum}});
    float lanes[2][kLanes];
    StoreVector(lanes[0], {{even_sum}});
    StoreVector(lanes[1], {{odd_sum}});
    for (int j = 0; j < kDv; ++j) {
      products[j] = 0.0f;
      for (int l = j / 2; l < kLanes; l += kDv / 2) products[j] += lanes[j % 2][l];
    }
  }
}
#endif

// r * inverse_norm * beta * (v - k^T X) for every channel.
template <typename T, int kDv>
DDL_INLINE void DeltaSteps(const DeltaStepArgs& args, int64_t row, int64_t d, const T* x,
                           const T* h, float* steps) {
  float squared, products[kDv];
  Project(d, x, h, squared, products);
  const float inverse_norm = 1.0f / sqrtf(squared + args.k_eps * args.k_eps);
  const float scale = args.residual_multiplier * inverse_norm * args.beta[row];
  const float* v = args.v + row * args.dv;
  for (int j = 0; j < kDv; ++j) {
    steps[j] = j < args.dv ? scale * (v[j] - inverse_norm * products[j]) : 0.0f;
  }
}

// Rewrites a row's X and reads it: x_in, and the sums of it that norm and gates need.
template <typename T, int kDv, Rewrite kRewrite, Read kRead>
DDL_INLINE void StepRow(const DeltaStepArgs& args, const StepWeights& weights, int64_t row,
                        const RowMemory<T>& memory, RowSums& row_sums) {
  const int64_t d = weights.d;
  T* x = memory.x;
  Floats steps = Broadcast(args.residual_multiplier);  // of kAdd
  if constexpr (kRewrite == Rewrite::kDelta) {
    float channels[kDv];
    DeltaSteps<T, kDv>(args, row, d, x, memory.h, channels);
    steps = RepeatChannels<kDv>(channels);
  }
  Floats squares = Broadcast(0.0f), beta = squares, v[kDv];
  DDL_UNROLL for (int j = 0; j < kDv; ++j) v[j] = Broadcast(0.0f);

  for (int64_t i = 0; i < d; i += kLanes) {
    Floats state[kDv];
    DDL_UNROLL for (int s = 0; s < kDv; ++s) state[s] = LoadVector(x + i * kDv + s * kLanes);
    if constexpr (kRewrite != Rewrite::kNone) {
      const Floats h = LoadVector(memory.h + i);
      const auto add = [&]<int... kVectors>(Sequence<kVectors...>) __attribute__((always_inline)) {
        ((state[kVectors] = state[kVectors] + Spread<kDv, kVectors>(h) * steps), ...);
      };
      add(Vectors<kDv>());
      // Read X as stored, so that fusing the rewrite and the read changes nothing.
      DDL_UNROLL for (int s = 0; s < kDv; ++s) {
        state[s] = StoreRounded(x + i * kDv + s * kLanes, state[s]);
      }
    }
    if constexpr (kRead == Read::kNothing) continue;

    const auto compress = [&](int64_t tap) __attribute__((always_inline)) {
      const float* w = weights.compress + (tap * d + i) * kDv;
      Floats products[kDv];
      DDL_UNROLL for (int s = 0; s < kDv; ++s) {
        products[s] = state[s] * LoadVector(w + s * kLanes);
      }
      return GroupSums<kDv>(products);
    };
    Floats x_in;
    if constexpr (kRead == Read::kIdentity) x_in = state[0];
    if constexpr (kRead == Read::kChannel) x_in = compress(0);
    if constexpr (kRead == Read::kToken) {
      // The taps of an output are added oldest first on every path, one row after another.
      const int64_t taps = weights.taps;
      x_in = compress(taps - 1);
      if (taps > 1) x_in = LoadVector(memory.tail_in + i) + x_in;
      for (int64_t n = 0; n + 1 < taps; ++n) {
        Floats partial = compress(taps - 2 - n);
        if (n + 2 < taps) partial = LoadVector(memory.tail_in + (n + 1) * d + i) + partial;
        StoreVector(memory.tail_out + n * d + i, partial);
      }
    }
    StoreVector(memory.x_in + i, x_in);
    squares = squares + x_in * x_in;
    if (weights.beta != nullptr) {
      beta = beta + LoadVector(weights.beta + i) * LoadVector(weights.norm + i) * x_in;
    }
    if (weights.v != nullptr) {
      DDL_UNROLL for (int j = 0; j < kDv; ++j) {
        v[j] = v[j] + LoadVector(weights.v + j * d + i) * x_in;
      }
    }
  }
  if constexpr (kRead == Read::kNothing) return;
  row_sums.squares = Total(squares);
  if (weights.beta != nullptr) row_sums.beta = Total(beta);
  if (weights.v != nullptr) {
    DDL_UNROLL for (int j = 0; j < kDv; ++j) row_sums.v[j] = Total(v[j]);
  }
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE

#endif  // DDL_MODEL_KERNELS_CPU_DELTA_ROW_H_
