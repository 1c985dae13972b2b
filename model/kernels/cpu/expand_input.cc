#include "model/kernels/cpu/implementation.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

// Sixteen numbers of each of four rows -> [sixteen, four].
DDL_INLINE void Interleave(const Floats (&rows)[4], float* to) {
#if defined(__AVX512F__)
  const auto low = [](PartFloats a, PartFloats b) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  };
  const auto high = [](PartFloats a, PartFloats b) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
  };
  const PartFloats even_low = low(rows[0].part[0], rows[2].part[0]);
  const PartFloats even_high = high(rows[0].part[0], rows[2].part[0]);
  const PartFloats odd_low = low(rows[1].part[0], rows[3].part[0]);
  const PartFloats odd_high = high(rows[1].part[0], rows[3].part[0]);
  StoreVector(to, Floats{{low(even_low, odd_low)}});
  StoreVector(to + kLanes, Floats{{high(even_low, odd_low)}});
  StoreVector(to + 2 * kLanes, Floats{{low(even_high, odd_high)}});
  StoreVector(to + 3 * kLanes, Floats{{high(even_high, odd_high)}});
#else
  for (int64_t r = 0; r < 4; ++r) {
    float lanes[kLanes];
    StoreVector(lanes, rows[r]);
    for (int64_t l = 0; l < kLanes; ++l) to[l * 4 + r] = lanes[l];
  }
#endif
}

// Four times the same four lanes, from 4 kGroup on.
template <int kGroup>
DDL_INLINE Floats RepeatFour(const Floats& value) {
#if defined(__AVX512F__)
#define DDL_LANES 4 * kGroup, 4 * kGroup + 1, 4 * kGroup + 2, 4 * kGroup + 3
  return {{__builtin_shufflevector(value.part[0], value.part[0], DDL_LANES, DDL_LANES, DDL_LANES,
                                   DDL_LANES)}};
#undef DDL_LANES
#else
  float from[kLanes], to[kLanes];
  StoreVector(from, value);
  DDL_UNROLL for (int i = 0; i < 4; ++i) memcpy(to + 4 * i, from + 4 * kGroup, 4 * sizeof(float));
  return LoadVector(to);
#endif
}

// One row of the paper's expansion, of four taps to four channels: features [0, end), `end` a
// multiple of sixteen. A vector holds a feature's channels and their taps.
template <typename T>
void ExpandFourByFour(const T* const (&embeddings)[4], const float* conv, int64_t end, T* x) {
  for (int64_t i = 0; i < end; i += kLanes) {
    Floats rows[4];
    DDL_UNROLL for (int r = 0; r < 4; ++r) rows[r] = LoadVector(embeddings[r] + i);
    float taps[4 * kLanes];  // [feature, tap]
    Interleave(rows, taps);
    for (int64_t group = 0; group < kLanes; group += 4) {
      const float* w = conv + (i + group) * kLanes;
      const Floats four = LoadVector(taps + group * 4);
      const Floats products[4] = {LoadVector(w) * RepeatFour<0>(four),
                                  LoadVector(w + kLanes) * RepeatFour<1>(four),
                                  LoadVector(w + 2 * kLanes) * RepeatFour<2>(four),
                                  LoadVector(w + 3 * kLanes) * RepeatFour<3>(four)};
      StoreVector(x + (i + group) * 4, GroupSums<4>(products));
    }
  }
}

template <typename T>
void ExpandInputTyped(const Executor& executor, int64_t tokens, const ExpandInputArgs& args) {
  const int64_t d = args.d, dv = args.dv, taps = args.taps;
  const T* embedding = static_cast<const T*>(args.embedding);
  ParallelFor(executor, tokens, RowGrain(d * dv * taps), [&](int64_t begin, int64_t end) {
    Scratch scratch(Scratch::Bytes<float>(d * dv) + Scratch::Bytes<T>(d));
    float* sum = scratch.Take<float>(d * dv);
    T* zeros = scratch.Take<T>(d);
    memset(zeros, 0, d * sizeof(T));
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
      int64_t done = 0;  // features
      if (taps == 4 && dv == 4) {
        const T* embeddings[4];  // before the start: e = 0
        for (int64_t r = 0; r < 4; ++r) embeddings[r] = ids[r] < 0 ? zeros : embedding + ids[r] * d;
        done = d / kLanes * kLanes;
        ExpandFourByFour(embeddings, args.conv, done, x);
      }
      for (int64_t c = done * dv; c < d * dv; ++c) sum[c] = 0.0f;
      for (int64_t r = 0; r < taps; ++r) {
        if (ids[r] < 0) continue;  // before the start: e = 0
        const T* e = embedding + ids[r] * d;
        for (int64_t i = done; i < d; ++i) {
          const float value = Load(e + i);
          for (int64_t j = 0; j < dv; ++j) {
            sum[i * dv + j] += args.conv[(i * dv + j) * taps + r] * value;
          }
        }
      }
      for (int64_t c = done * dv; c < d * dv; ++c) Store(x + c, sum[c]);
    }
  });
}

}  // namespace

void Implementation::ExpandInput(const Batch& batch, const ExpandInputArgs& args) const {
  args.type == Type::kFloat32 ? ExpandInputTyped<float>(executor_, batch.tokens, args)
                              : ExpandInputTyped<BFloat16>(executor_, batch.tokens, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
