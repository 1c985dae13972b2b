// One sublayer boundary. The delta rule's arithmetic is nothing beside a matrix product's, so what
// counts is that a row of X is read once for the projection and once for all the rest: the update,
// its rounding, the compress, and the products for the gates.
//
// A vector holds sixteen neighbours of X, [d, dv] with dv fastest: 16 / dv features. So a block of
// sixteen features is dv vectors of X, and one of h or x_in. Where d is no multiple of sixteen, or
// dv none of 1, 2, 4 and 8, rows and weights are padded with zeros, which change no sum.

#include "model/kernels/cpu/implementation.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

// ---- Lanes

// The numbers of a block's vectors, to expand over.
template <int... kVectors>
struct Sequence {};
template <int kCount>
struct SequenceOf;
template <>
struct SequenceOf<1> {
  using Type = Sequence<0>;
};
template <>
struct SequenceOf<2> {
  using Type = Sequence<0, 1>;
};
template <>
struct SequenceOf<4> {
  using Type = Sequence<0, 1, 2, 3>;
};
template <>
struct SequenceOf<8> {
  using Type = Sequence<0, 1, 2, 3, 4, 5, 6, 7>;
};
template <int kCount>
using Vectors = typename SequenceOf<kCount>::Type;

// Lane l of vector kVector is value[(16 kVector + l) / kDv]: each feature beside its channels.
template <int kDv, int kVector>
DDL_INLINE Floats Spread(const Floats& value) {
#define DDL_FEATURE(l) (16 * kVector + (l)) / kDv
#if defined(__AVX512F__)
  const PartFloats& v = value.part[0];
  return {{__builtin_shufflevector(v, v, DDL_FEATURE(0), DDL_FEATURE(1), DDL_FEATURE(2),
                                   DDL_FEATURE(3), DDL_FEATURE(4), DDL_FEATURE(5), DDL_FEATURE(6),
                                   DDL_FEATURE(7), DDL_FEATURE(8), DDL_FEATURE(9), DDL_FEATURE(10),
                                   DDL_FEATURE(11), DDL_FEATURE(12), DDL_FEATURE(13),
                                   DDL_FEATURE(14), DDL_FEATURE(15))}};
#else
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    DDL_UNROLL for (int l = 0; l < kPartLanes; ++l) {
      const int feature = DDL_FEATURE(i * kPartLanes + l);
      result.part[i][l] = value.part[feature / kPartLanes][feature % kPartLanes];
    }
  }
  return result;
#endif
#undef DDL_FEATURE
}

// Lane l is values[l mod kDv].
template <int kDv>
DDL_INLINE Floats RepeatChannels(const float* values) {
  float lanes[kLanes];
  DDL_UNROLL for (int l = 0; l < kLanes; ++l) lanes[l] = values[l % kDv];
  return LoadVector(lanes);
}

// Stores, and returns what is stored.
DDL_INLINE Floats StoreRounded(float* p, const Floats& value) {
  StoreVector(p, value);
  return value;
}
DDL_INLINE Floats StoreRounded(BFloat16* p, const Floats& value) {
  StoreVector(p, value);
  return LoadVector(p);
}

// ---- One row

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
void StepRow(const DeltaStepArgs& args, const StepWeights& weights, int64_t row,
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

// ---- All rows

int64_t Padded(int64_t d) { return (d + kLanes - 1) / kLanes * kLanes; }

template <typename T, int kDv>
class Stepper {
 public:
  Stepper(const Batch& batch, const DeltaStepArgs& args)
      : batch_(batch),
        args_(args),
        d_(Padded(args.d)),
        tail_size_(args.compress == Compress::kToken ? (args.taps - 1) * d_ : 0),
        is_padded_(d_ != args.d || kDv != args.dv),
        padded_weights_(is_padded_ ? PaddedWeightBytes() : 0) {
    weights_.d = d_;
    weights_.taps = args.taps;
    weights_.compress = args.compress_weight;
    weights_.norm = args.norm_weight;
    if (args.gates && args.gate.beta_in == nullptr) weights_.beta = args.gate.beta_weight;
    if (args.gates) weights_.v = args.gate.v_weight;
    if (is_padded_) PadWeights();
  }

  void Run(const Executor& executor) {
    switch (args_.compress) {
      case Compress::kIdentity:
        if constexpr (kDv == 1) RunRead<Read::kIdentity>(executor);
        return;
      case Compress::kChannel:
        return RunRead<Read::kChannel>(executor);
      case Compress::kToken:
        return RunRead<Read::kToken>(executor);
    }
  }

 private:
  // A thread's memory.
  struct Workspace {
    explicit Workspace(const Stepper& stepper)
        : scratch(Scratch::Bytes<float>(stepper.d_) +
                  2 * Scratch::Bytes<float>(stepper.tail_size_) +
                  Scratch::Bytes<T>(stepper.d_ * (kDv + 1))),
          x_in(scratch.Take<float>(stepper.d_)),
          tail(scratch.Take<float>(stepper.tail_size_)),
          zeros(scratch.Take<float>(stepper.tail_size_)),
          x(scratch.Take<T>(stepper.d_ * (kDv + 1))),
          h(x + stepper.d_ * kDv) {
      memset(zeros, 0, stepper.tail_size_ * sizeof(float));
    }

    Scratch scratch;
    float* x_in;   // [d]
    float* tail;   // [taps - 1, d]
    float* zeros;  // [taps - 1, d]
    T* x;          // padded [d, kDv]
    T* h;          // padded [d]
  };

  int64_t PaddedWeightBytes() const {
    const int64_t taps = args_.compress == Compress::kToken ? args_.taps : 1;
    return Scratch::Bytes<float>(taps * d_ * kDv) + 2 * Scratch::Bytes<float>(d_) +
           Scratch::Bytes<float>(kDv * d_);
  }

  // [rows, columns] of `weight`, as [rows_padded, columns_padded] with zeros.
  const float* Pad(const float* weight, int64_t rows, int64_t columns, int64_t rows_padded,
                   int64_t columns_padded) {
    if (weight == nullptr) return nullptr;
    float* padded = padded_weights_.template Take<float>(rows_padded * columns_padded);
    memset(padded, 0, rows_padded * columns_padded * sizeof(float));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        padded[i * columns_padded + j] = weight[i * columns + j];
      }
    }
    return padded;
  }

  void PadWeights() {
    const int64_t d = args_.d;
    if (args_.compress != Compress::kIdentity) {
      const int64_t taps = args_.compress == Compress::kToken ? args_.taps : 1;
      float* padded = padded_weights_.template Take<float>(taps * d_ * kDv);
      memset(padded, 0, taps * d_ * kDv * sizeof(float));
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t i = 0; i < d; ++i) {
          for (int64_t j = 0; j < args_.dv; ++j) {
            padded[(tap * d_ + i) * kDv + j] = args_.compress_weight[(tap * d + i) * args_.dv + j];
          }
        }
      }
      weights_.compress = padded;
    }
    weights_.norm = Pad(weights_.norm, 1, d, 1, d_);
    weights_.beta = Pad(weights_.beta, 1, d, 1, d_);
    weights_.v = Pad(weights_.v, args_.dv, d, kDv, d_);
  }

  T* XRow(int64_t t) const { return static_cast<T*>(args_.x) + t * args_.d * args_.dv; }

  // A row's X and h where StepRow finds them.
  RowMemory<T> Bring(Workspace& work, int64_t t) const {
    RowMemory<T> memory;
    memory.x_in = work.x_in;
    memory.x = XRow(t);
    if (args_.h != nullptr) memory.h = static_cast<const T*>(args_.h) + t * args_.d;
    if (!is_padded_) return memory;
    memset(work.x, 0, d_ * (kDv + 1) * sizeof(T));
    for (int64_t i = 0; i < args_.d; ++i) {
      for (int64_t j = 0; j < args_.dv; ++j) work.x[i * kDv + j] = memory.x[i * args_.dv + j];
      if (memory.h != nullptr) work.h[i] = memory.h[i];
    }
    memory.x = work.x;
    memory.h = work.h;
    return memory;
  }

  void PutBack(const Workspace& work, int64_t t) const {
    T* x = XRow(t);
    for (int64_t i = 0; i < args_.d; ++i) {
      for (int64_t j = 0; j < args_.dv; ++j) x[i * args_.dv + j] = work.x[i * kDv + j];
    }
  }

  template <Rewrite kRewrite, Read kRead>
  void Row(Workspace& work, int64_t t, const float* tail_in, float* tail_out) const {
    RowMemory<T> memory = Bring(work, t);
    memory.tail_in = tail_in;
    memory.tail_out = tail_out;
    RowSums sums;
    StepRow<T, kDv, kRewrite, kRead>(args_, weights_, t, memory, sums);
    if (is_padded_ && kRewrite != Rewrite::kNone) PutBack(work, t);
    if constexpr (kRead != Read::kNothing) Finish(work, t, sums);
  }

  // c = RMSNorm(x_in), and the gates.
  void Finish(Workspace& work, int64_t t, const RowSums& sums) const {
    const int64_t d = args_.d;
    const float* x_in = work.x_in;
    const float scale = 1.0f / sqrtf(sums.squares / static_cast<float>(d) + args_.norm_eps);
    if (args_.x_in != nullptr) {
      T* x_in_out = static_cast<T*>(args_.x_in) + t * d;
      for (int64_t i = 0; i < d; ++i) Store(x_in_out + i, x_in[i]);
    }
    T* c = static_cast<T*>(args_.c) + t * d;
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) {
      StoreVector(c + i, LoadVector(weights_.norm + i) * (LoadVector(x_in + i) * scale));
    }
    for (; i < d; ++i) Store(c + i, weights_.norm[i] * (x_in[i] * scale));
    if (!args_.gates) return;

    const GateWeights& gate = args_.gate;
    float logit = gate.beta_bias + scale * sums.beta;
    if (gate.beta_in != nullptr) {
      for (i = 0; i < d; ++i) work.x_in[i] = weights_.norm[i] * (x_in[i] * scale);
      for (int64_t n = 0; n < gate.beta_hidden; ++n) {
        logit += gate.beta_weight[n] * tanhf(Dot(gate.beta_in + n * d, work.x_in, d));
      }
    }
    args_.beta[t] = 2.0f * Sigmoid(logit);
    float* v = args_.v + t * args_.dv;
    for (int64_t j = 0; j < args_.dv; ++j) {
      if (gate.v_weight == nullptr) {
        v[j] = gate.v_constant;
        continue;
      }
      const float value = sums.v[j] + gate.v_bias[j];
      v[j] = gate.v_sigmoid ? gate.v_scale * Sigmoid(value) : value;
    }
  }

  template <Read kRead>
  void RunRead(const Executor& executor) {
    switch (args_.rewrite) {
      case Rewrite::kNone:
        return RunRows<Rewrite::kNone, kRead>(executor);
      case Rewrite::kDelta:
        return RunRows<Rewrite::kDelta, kRead>(executor);
      case Rewrite::kAdd:
        if constexpr (kDv == 1) RunRows<Rewrite::kAdd, kRead>(executor);
        return;
    }
  }

  template <Rewrite kRewrite, Read kRead>
  void RunRows(const Executor& executor) {
    if constexpr (kRead == Read::kToken) {
      if (batch_.tokens != batch_.sequences) return RunSequences<kRewrite>(executor);
    }
    ParallelFor(executor, batch_.tokens, Grain(), [&](int64_t begin, int64_t end) {
      Workspace work(*this);
      for (int64_t t = begin; t < end; ++t) {
        if constexpr (kRead == Read::kToken) {
          float* tail = is_padded_ ? work.tail : Tail(batch_.slot[t]);
          Row<kRewrite, kRead>(work, t, SourceTail(work, t), tail);
          if (is_padded_) SaveTail(tail, batch_.slot[t]);
          SaveTailOfRow(tail, t);
        } else {
          Row<kRewrite, kRead>(work, t, nullptr, nullptr);
        }
      }
    });
  }

  // ---- TC with more than one row of a sequence: an output needs the rows before, rewritten.

  template <Rewrite kRewrite>
  void RunSequences(const Executor& executor) {
    if constexpr (kRewrite != Rewrite::kNone) {
      ParallelFor(executor, batch_.tokens, Grain(), [&](int64_t begin, int64_t end) {
        Workspace work(*this);
        for (int64_t t = begin; t < end; ++t) {
          Row<kRewrite, Read::kNothing>(work, t, nullptr, nullptr);
        }
      });
    }
    // A sequence's rows may be several threads', and any of them may read the tails it came with:
    // those that it leaves go to its slot when all have.
    Scratch scratch(Scratch::Bytes<float>(batch_.sequences * tail_size_));
    float* left = scratch.Take<float>(batch_.sequences * tail_size_);
    ParallelFor(executor, batch_.tokens, Grain(), [&](int64_t begin, int64_t end) {
      Workspace work(*this);
      const float* tail = nullptr;
      for (int64_t t = begin; t < end; ++t) {
        const int64_t sequence = batch_.row_sequence[t];
        const int64_t first = batch_.row_begin[sequence];
        if (t == begin || t == first) tail = TailBefore(work, t);
        Row<Rewrite::kNone, Read::kToken>(work, t, tail, work.tail);
        tail = work.tail;
        SaveTailOfRow(tail, t);
        if (t + 1 == batch_.row_begin[sequence + 1]) {
          memcpy(left + sequence * tail_size_, tail, tail_size_ * sizeof(float));
        }
      }
    });
    for (int64_t s = 0; s < batch_.sequences; ++s) {
      SaveTail(left + s * tail_size_, batch_.slot[s]);
    }
  }

  // The partial sums before row t: what its sequence came with, or those of the rows before, which
  // begin at zero taps - 1 rows before.
  const float* TailBefore(Workspace& work, int64_t t) const {
    const int64_t sequence = batch_.row_sequence[t];
    const int64_t first = batch_.row_begin[sequence];
    const int64_t from = t - (args_.taps - 1) > first ? t - (args_.taps - 1) : first;
    const float* tail = from == first ? SourceTail(work, sequence) : work.zeros;
    for (int64_t row = from; row < t; ++row) {
      RowMemory<T> memory = Bring(work, row);
      memory.tail_in = tail;
      memory.tail_out = work.tail;
      RowSums unused;
      StepRow<T, kDv, Rewrite::kNone, Read::kToken>(args_, weights_, row, memory, unused);
      tail = work.tail;
    }
    return tail;
  }

  float* Tail(int64_t slot) const { return args_.tail + slot * args_.tail_stride; }

  // The partial sums that a sequence came with, [taps - 1, padded d].
  const float* SourceTail(Workspace& work, int64_t sequence) const {
    if (batch_.position[batch_.row_begin[sequence]] == 0) return work.zeros;
    const float* tail = Tail(TailSource(batch_, sequence));
    if (!is_padded_) return tail;
    memset(work.tail, 0, tail_size_ * sizeof(float));
    for (int64_t n = 0; n + 1 < args_.taps; ++n) {
      memcpy(work.tail + n * d_, tail + n * args_.d, args_.d * sizeof(float));
    }
    return work.tail;
  }

  void SaveTail(const float* tail, int64_t slot) const {
    for (int64_t n = 0; n + 1 < args_.taps; ++n) {
      memcpy(Tail(slot) + n * args_.d, tail + n * d_, args_.d * sizeof(float));
    }
  }

  void SaveTailOfRow(const float* tail, int64_t t) const {
    if (batch_.row_save != nullptr && batch_.row_save[t] >= 0) SaveTail(tail, batch_.row_save[t]);
  }

  // Rows that are worth a thread: a few microseconds.
  int64_t Grain() const {
    constexpr int64_t kElements = 12288;
    const int64_t rows = kElements / (d_ * kDv);
    return rows > 1 ? rows : 1;
  }

  const Batch& batch_;
  const DeltaStepArgs& args_;
  const int64_t d_;  // padded
  const int64_t tail_size_;
  const bool is_padded_;
  Scratch padded_weights_;
  StepWeights weights_;
};

template <typename T>
void DeltaStepTyped(const Executor& executor, const Batch& batch, const DeltaStepArgs& args) {
  switch (args.dv) {
    case 1:
      return Stepper<T, 1>(batch, args).Run(executor);
    case 2:
      return Stepper<T, 2>(batch, args).Run(executor);
    case 3:
    case 4:
      return Stepper<T, 4>(batch, args).Run(executor);
    default:
      return Stepper<T, 8>(batch, args).Run(executor);
  }
}

}  // namespace

void Implementation::DeltaStep(const Batch& batch, const DeltaStepArgs& args) const {
  if (args.update_ratio != nullptr && args.rewrite == Rewrite::kDelta) {
    UpdateRatios(batch, args);
  }
  if (args.dv > 8 ||
      (args.dv > 1 && (args.rewrite == Rewrite::kAdd || args.compress == Compress::kIdentity))) {
    return WideDeltaStep(batch, args);
  }
  args.type == Type::kFloat32 ? DeltaStepTyped<float>(executor_, batch, args)
                              : DeltaStepTyped<BFloat16>(executor_, batch, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
