#include "model/kernels/cpu/bodies.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

float SoftmaxWeightsBody(const float* logits, int64_t n, float max, float inverse_temperature,
                         float* weights) {
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
