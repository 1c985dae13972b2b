// Input expansion: one pass that reads each embedding row once per tap and writes X. A block owns a
// row, a thread packs of neighbouring channels.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// kElements of X at a time: one or more whole features, or part of one, as they divide. kDv = 0: dv
// is only known now.
template <typename T, int kDv, int kElements>
__global__ void __launch_bounds__(kThreads) ExpandInputRows(ExpandInputArgs args) {
  BeginKernel();
  const int64_t t = blockIdx.x;
  const int d = static_cast<int>(args.d), taps = static_cast<int>(args.taps);
  const int dv = kDv > 0 ? kDv : static_cast<int>(args.dv);
  const int32_t* ids = args.ids + t * taps;
  const T* embedding = static_cast<const T*>(args.embedding);
  T* x = static_cast<T*>(args.x) + t * d * dv;
  for (int channel = threadIdx.x * kElements; channel < d * dv; channel += kThreads * kElements) {
    Pack<T, kElements> out;
    if (args.conv == nullptr) {
      const T* e = embedding + static_cast<int64_t>(ids[taps - 1]) * d;
#pragma unroll
      for (int n = 0; n < kElements; ++n) out.element[n] = e[(channel + n) / dv];
    } else {
      float sum[kElements] = {};
      for (int r = 0; r < taps; ++r) {
        if (ids[r] < 0) continue;  // before the start: e = 0
        const T* e = embedding + static_cast<int64_t>(ids[r]) * d;
#pragma unroll
        for (int n = 0; n < kElements; ++n) {
          sum[n] = MultiplyAdd(args.conv[static_cast<int64_t>(channel + n) * taps + r],
                               ToFloat(e[(channel + n) / dv]), sum[n]);
        }
      }
#pragma unroll
      for (int n = 0; n < kElements; ++n) out.element[n] = FromFloat<T>(sum[n]);
    }
    StorePack(x + channel, out);
  }
}

template <typename T, int kDv>
Error LaunchDv(Stream stream, int64_t tokens, const ExpandInputArgs& args) {
  constexpr int kElements = 16 / sizeof(T);
  const int64_t row = args.d * args.dv;
  if (IsAligned(args.x, row * static_cast<int64_t>(sizeof(T)), 16)) {
    return Launch(ExpandInputRows<T, kDv, kElements>, Grid{tokens}, kThreads, 0, stream, args);
  }
  return Launch(ExpandInputRows<T, kDv, 1>, Grid{tokens}, kThreads, 0, stream, args);
}

template <typename T>
Error LaunchType(Stream stream, int64_t tokens, const ExpandInputArgs& args) {
  switch (args.dv) {
    case 1:
      return LaunchDv<T, 1>(stream, tokens, args);
    case 2:
      return LaunchDv<T, 2>(stream, tokens, args);
    case 4:
      return LaunchDv<T, 4>(stream, tokens, args);
    case 8:
      return LaunchDv<T, 8>(stream, tokens, args);
    default:
      return LaunchDv<T, 0>(stream, tokens, args);
  }
}

}  // namespace

Error ExpandInput(Stream stream, int64_t tokens, const ExpandInputArgs& args) {
  if (tokens == 0) return kSuccess;
  if (args.d < 1 || args.dv < 1 || args.taps < 1 || args.d * args.dv > (1 << 28))
    return kInvalidArgument;
  return args.type == Type::kFloat32 ? LaunchType<float>(stream, tokens, args)
                                     : LaunchType<BFloat16>(stream, tokens, args);
}

}  // namespace ddl::kernels::cuda
