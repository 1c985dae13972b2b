#include "model/kernels/cpu/implementation.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

Largest Implementation::FindLargest(const float* values, int64_t n) const {
  constexpr int kVectors = 4;                  // independent of one another
  constexpr uint32_t kExponent = 0x7f800000u;  // all ones: NaN or infinity
  Floats largest[kVectors];
  PartWords not_finite[kParts] = {};
  DDL_UNROLL for (int j = 0; j < kVectors; ++j) largest[j] = Broadcast(-__builtin_inff());
  int64_t i = 0;
  for (; i + kVectors * kLanes <= n; i += kVectors * kLanes) {
    DDL_UNROLL for (int j = 0; j < kVectors; ++j) {
      const Floats v = LoadVector(values + i + j * kLanes);
      DDL_UNROLL for (int part = 0; part < kParts; ++part) {
        const PartWords exponent = reinterpret_cast<PartWords>(v.part[part]) & kExponent;
        not_finite[part] |= reinterpret_cast<PartWords>(exponent == kExponent);
        PartFloats& most = largest[j].part[part];
        most = v.part[part] > most ? v.part[part] : most;
      }
    }
  }
  Largest result = {.value = -__builtin_inff(), .all_finite = true};
  DDL_UNROLL for (int part = 0; part < kParts; ++part) {
    for (int lane = 0; lane < kPartLanes; ++lane) {
      if (not_finite[part][lane] != 0) result.all_finite = false;
      for (int j = 0; j < kVectors; ++j) {
        const float value = largest[j].part[part][lane];
        result.value = value > result.value ? value : result.value;
      }
    }
  }
  for (; i < n; ++i) {
    uint32_t bits;
    memcpy(&bits, values + i, sizeof(bits));
    if ((bits & kExponent) == kExponent) result.all_finite = false;
    result.value = values[i] > result.value ? values[i] : result.value;
  }
  return result;
}

float Implementation::SoftmaxWeights(const float* logits, int64_t n, float max,
                                     float inverse_temperature, float* weights) const {
  for (int64_t i = 0; i < n; ++i) weights[i] = Exp((logits[i] - max) * inverse_temperature);
  Floats sums = Broadcast(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums = sums + LoadVector(weights + i);
  float lanes[kLanes];
  StoreVector(lanes, sums);
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += weights[i + l];
  return Total(LoadVector(lanes));
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
