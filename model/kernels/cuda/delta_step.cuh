#ifndef DDL_MODEL_KERNELS_CUDA_DELTA_STEP_CUH_
#define DDL_MODEL_KERNELS_CUDA_DELTA_STEP_CUH_

// What the kernels of a sublayer boundary share: features of a row of X, and taps over tokens.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {

constexpr int kMaxChannels = 8;

// Launches that DeltaStep makes beside its own kernel. Before the rewrite: args.update_ratio.
Error LaunchUpdateRatio(Stream stream, int64_t tokens, const DeltaStepArgs& args);
// After all rows are rewritten: the tails of TC, by row (batch.row_save) and by sequence.
Error LaunchTokenTails(Stream stream, const Batch& batch, const DeltaStepArgs& args);

// sum_j w[j] x[j] of feature `i` of a pack. One order on every path of TC.
template <int kDv, int kElements, typename T>
__device__ float Tap(const float* w, const Pack<T, kElements>& x, int i, int dv) {
  float sum = 0.0f;
  if constexpr (kDv > 0) {
    const Pack<float, kDv> weight = LoadWeights<kDv>(w);
#pragma unroll
    for (int j = 0; j < kDv; ++j) {
      sum = MultiplyAdd(weight.element[j], ToFloat(x.element[i * kDv + j]), sum);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kMaxChannels; ++j) {
      if (j < dv) sum = MultiplyAdd(w[j], ToFloat(x.element[j]), sum);
    }
  }
  return sum;
}

// `kGroup` features of a row of X, [kGroup, dv]. kDv = 0: dv is only known now, and kGroup is 1.
template <int kDv, int kGroup, typename T>
__device__ auto LoadFeatures(const T* x, int dv) {
  if constexpr (kDv > 0) {
    return LoadPack<kGroup * kDv>(x);
  } else {
    Pack<T, kMaxChannels> pack = {};
#pragma unroll
    for (int j = 0; j < kMaxChannels; ++j) {
      if (j < dv) pack.element[j] = x[j];
    }
    return pack;
  }
}

template <int kDv, int kGroup, typename T, int kElements>
__device__ void StoreFeatures(T* x, const Pack<T, kElements>& pack, int dv) {
  if constexpr (kDv > 0) {
    StorePack(x, pack);
  } else {
#pragma unroll
    for (int j = 0; j < kMaxChannels; ++j) {
      if (j < dv) x[j] = pack.element[j];
    }
  }
}

}  // namespace ddl::kernels::cuda

#endif  // DDL_MODEL_KERNELS_CUDA_DELTA_STEP_CUH_
