// The end of attention for what another kernel has attended to, LibTorch's flash attention: norm
// and gate of each head.

#include "model/kernels/cuda/split_attention.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = kAttentionThreads;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    FinishItems(PagedAttentionArgs args, const T* attended) {
  BeginKernel();
  const int64_t item = blockIdx.x;
  const int hd = static_cast<int>(args.head_dim);
  float* scratch = reinterpret_cast<float*>(SharedMemory());
  float* sum = scratch + kThreads / kWarp;
  for (int n = threadIdx.x; n < hd; n += kThreads) sum[n] = ToFloat(attended[item * hd + n]);
  FinishHead<T>(args, item, 1.0f, sum, scratch);
}

}  // namespace

Error FinishAttention(Stream stream, int64_t rows, const PagedAttentionArgs& args,
                      const void* attended) {
  if (rows == 0) return kSuccess;
  if (args.heads < 1 || args.head_dim < 1 || args.head_dim > kMaxHeadDim) return kInvalidArgument;
  const int64_t shared_bytes = (kThreads / kWarp + args.head_dim) * 4;
  const auto launch = [&](auto kernel, auto* from) {
    return Launch(kernel, Grid{rows * args.heads}, kThreads, shared_bytes, stream, args, from);
  };
  return args.type == Type::kFloat32
             ? launch(FinishItems<float>, static_cast<const float*>(attended))
             : launch(FinishItems<BFloat16>, static_cast<const BFloat16*>(attended));
}

}  // namespace ddl::kernels::cuda
