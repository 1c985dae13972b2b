// y = silu(a) * b, in the widest packs that divide a row and are aligned: an MLP's width need not
// be a multiple of eight (1024 -> 2730), so rows can start anywhere.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads) SwiGluRows(SwiGluArgs args) {
  BeginKernel();
  const int64_t t = blockIdx.x;
  const T* a = static_cast<const T*>(args.ab) + t * 2 * args.m;
  const T* b = a + args.m;
  T* y = static_cast<T*>(args.y) + t * args.m;
  const int64_t i = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kElements;
  if (i >= args.m) return;
  const auto a_pack = LoadPack<kElements>(a + i);
  const auto b_pack = LoadPack<kElements>(b + i);
  Pack<T, kElements> out;
#pragma unroll
  for (int n = 0; n < kElements; ++n) {
    out.element[n] = FromFloat<T>(Silu(ToFloat(a_pack.element[n])) * ToFloat(b_pack.element[n]));
  }
  StorePack(y + i, out);
}

template <typename T, int kElements>
Error LaunchWidest(Stream stream, int64_t tokens, const SwiGluArgs& args) {
  if constexpr (kElements > 1) {
    constexpr int64_t kBytes = kElements * sizeof(T);
    const int64_t row = args.m * static_cast<int64_t>(sizeof(T));
    if (!IsAligned(args.ab, row, kBytes) || !IsAligned(args.y, row, kBytes)) {
      return LaunchWidest<T, kElements / 2>(stream, tokens, args);
    }
  }
  return Launch(SwiGluRows<T, kElements>, Grid{tokens, DivideUp(args.m, kThreads * kElements)},
                kThreads, 0, stream, args);
}

}  // namespace

Error SwiGlu(Stream stream, int64_t tokens, const SwiGluArgs& args) {
  if (tokens == 0) return kSuccess;
  if (args.m < 1 || args.m > (int64_t{1} << 22)) return kInvalidArgument;
  return args.type == Type::kFloat32 ? LaunchWidest<float, 4>(stream, tokens, args)
                                     : LaunchWidest<BFloat16, 8>(stream, tokens, args);
}

}  // namespace ddl::kernels::cuda
