#ifndef DDL_MODEL_KERNELS_CPU_DELTA_LANES_H_
#define DDL_MODEL_KERNELS_CPU_DELTA_LANES_H_

#include "model/kernels/cpu/vector.h"

// How X [d, dv] lies in vectors of sixteen lanes: dv is fastest, so that a vector holds 16 / dv
// features, and a block of sixteen features is dv vectors of X and one of h or x_in.

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

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

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE

#endif  // DDL_MODEL_KERNELS_CPU_DELTA_LANES_H_
