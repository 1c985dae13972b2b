// What one step has sampled becomes what the next one reads, without the host in between.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) FillSampledIds(FillIdsArgs args, int64_t count) {
  BeginKernel();
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= count) return;
  const int32_t id = args.sampled[args.from[n]];
  // Nothing was sampled from logits that are not finite. Their sequence has failed, but its row of
  // the embedding is still read.
  args.ids[args.to[n]] = id >= 0 ? id : 0;
}

}  // namespace

Error FillIds(Stream stream, int64_t count, const FillIdsArgs& args) {
  if (count == 0) return kSuccess;
  return Launch(FillSampledIds, Grid{DivideUp(count, kThreads)}, kThreads, 0, stream, args, count);
}

}  // namespace ddl::kernels::cuda
