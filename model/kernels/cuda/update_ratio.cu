// The statistic update_ratio: how large a boundary's update of X is beside X.

#include "model/kernels/cuda/delta_step.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// |r beta k (v - k^T X)| / |X| of each row, before its rewrite. The update is h step^T, so its size
// is |h| |step|. Only asked for now and then: reading X once more is cheaper than a sum more in
// every rewrite.
template <typename T>
__global__ void __launch_bounds__(kThreads) UpdateRatioRows(DeltaStepArgs args) {
  BeginKernel();
  const int64_t t = blockIdx.x;
  const int d = static_cast<int>(args.d), dv = static_cast<int>(args.dv);
  const T* h = static_cast<const T*>(args.h) + t * d;
  const T* x = static_cast<const T*>(args.x) + t * d * dv;
  float sum[2 + kMaxChannels] = {};  // |h|^2, |X|^2, h . X[:, j]
  for (int i = threadIdx.x; i < d; i += kThreads) {
    const float value = ToFloat(h[i]);
    const auto x_pack = LoadFeatures<0, 1>(x + static_cast<int64_t>(i) * dv, dv);
    sum[0] += value * value;
#pragma unroll
    for (int j = 0; j < kMaxChannels; ++j) {  // 0 from dv on
      const float element = ToFloat(x_pack.element[j]);
      sum[1] += element * element;
      sum[2 + j] += value * element;
    }
  }
  BlockSum<kThreads>(sum, reinterpret_cast<float*>(SharedMemory()));
  if (threadIdx.x != 0) return;
  const float inverse_norm = 1.0f / sqrtf(sum[0] + args.k_eps * args.k_eps);
  const float beta = args.residual_multiplier * args.beta[t];
  float step_squared = 0.0f;
#pragma unroll
  for (int j = 0; j < kMaxChannels; ++j) {
    if (j >= dv) continue;
    const float step = inverse_norm * beta * (args.v[t * dv + j] - inverse_norm * sum[2 + j]);
    step_squared += step * step;
  }
  args.update_ratio[t] = sum[1] > 0.0f ? sqrtf(sum[0] / sum[1] * step_squared) : 0.0f;
}

}  // namespace

Error LaunchUpdateRatio(Stream stream, int64_t tokens, const DeltaStepArgs& args) {
  constexpr int64_t kSums = kThreads / kWarp * (2 + kMaxChannels);
  const auto launch = [&](auto kernel) {
    return Launch(kernel, Grid{tokens}, kThreads, kSums * static_cast<int64_t>(sizeof(float)),
                  stream, args);
  };
  return args.type == Type::kFloat32 ? launch(UpdateRatioRows<float>)
                                     : launch(UpdateRatioRows<BFloat16>);
}

}  // namespace ddl::kernels::cuda
