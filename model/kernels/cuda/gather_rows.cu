// Copies chosen rows into a dense tensor, in the widest packs that divide a row and are aligned.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// Of whatever type, a row is bytes.
template <int kBytes>
__global__ void __launch_bounds__(kThreads) CopyRows(GatherRowsArgs args, int64_t row_bytes) {
  BeginKernel();
  using Word = typename WordOf<kBytes>::Type;
  const int64_t n = blockIdx.x;
  const auto* from =
      static_cast<const unsigned char*>(args.x) + static_cast<int64_t>(args.rows[n]) * row_bytes;
  auto* to = static_cast<unsigned char*>(args.y) + n * row_bytes;
  for (int64_t at = threadIdx.x * kBytes; at < row_bytes; at += kThreads * kBytes) {
    StoreWord<Word>(to + at, LoadWord<Word>(from + at));
  }
}

}  // namespace

Error GatherRows(Stream stream, int64_t count, const GatherRowsArgs& args) {
  if (count == 0) return kSuccess;
  if (args.d < 1) return kInvalidArgument;
  const int64_t row_bytes = args.d * (args.type == Type::kFloat32 ? 4 : 2);
  const auto launch = [&](auto kernel) {
    return Launch(kernel, Grid{count}, kThreads, 0, stream, args, row_bytes);
  };
  const auto fits = [&](int64_t bytes) {
    return IsAligned(args.x, row_bytes, bytes) && IsAligned(args.y, row_bytes, bytes);
  };
  if (fits(16)) return launch(CopyRows<16>);
  if (fits(4)) return launch(CopyRows<4>);
  return launch(CopyRows<2>);
}

}  // namespace ddl::kernels::cuda
