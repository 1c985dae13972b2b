#ifndef DDL_MODEL_KERNELS_CUDA_SPLIT_ATTENTION_CUH_
#define DDL_MODEL_KERNELS_CUDA_SPLIT_ATTENTION_CUH_

// Attention of single rows over splits of their contexts, flash-decoding's way: what its kernels
// share. The context is split at positions that follow from its length alone, into kMaxSplits parts
// at most. A block takes one head of one row over one split, tile by tile with a running maximum
// and sum; the block of a row that is done last puts its splits together, in one order whichever
// that is. So the order of all sums is a function of the row's own number of positions.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {

constexpr int kAttentionThreads = 128;
constexpr int kAttentionWarps = kAttentionThreads / kWarp;
constexpr int kAttentionTile = 64;  // positions
constexpr int64_t kMaxHeadDim = 1024;
static_assert(kPositionsPerSplit % kAttentionTile == 0 && kAttentionTile <= kAttentionThreads &&
              kAttentionTile == 2 * kWarp);
static_assert(kMaxSplits == 2 * kWarp, "a lane looks at two");

// The most splits that a row of up to `longest` positions has.
inline int64_t SplitsOf(int64_t longest) {
  const int64_t splits = DivideUp(longest, kPositionsPerSplit);
  return splits < kMaxSplits ? splits : kMaxSplits;
}

// PagedAttention of heads of 64 and 128 in bfloat16, which takes blocks of a multiple of eight
// positions, K and V aligned to 16 bytes.
bool IsPlain(const PagedAttentionArgs& args);
Error PlainAttention(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                     int64_t longest, float* workspace, int32_t* arrivals);

// Of a context of `length` positions.
__host__ __device__ inline int PositionsPerSplit(int length) {
  int64_t positions = kPositionsPerSplit;
  while (positions * kMaxSplits < length) positions *= 2;
  return static_cast<int>(positions);
}

// Of a split: the largest score, the sum of exp(score - largest), and these times V, [hd].
struct SplitSums {
  float* largest;
  float* total;
  float* sum;
};

__host__ __device__ inline SplitSums SplitSumsOf(float* workspace, int64_t item, int64_t splits,
                                                 int64_t split, int64_t head_dim) {
  float* base = workspace + (item * splits + split) * (head_dim + 2);
  return {base, base + 1, base + 2};
}

// A warp's weights of up to 64 scores, of which each lane has two: the largest becomes that of all
// so far, the weights go to `weight` [64], and their sum is returned.
__device__ inline float WeighTwo(const float (&score)[2], float& largest, float* weight) {
  const int lane = threadIdx.x % kWarp;
  largest = fmaxf(largest, WarpMax(fmaxf(score[0], score[1])));
  const float first = expf(score[0] - largest), second = expf(score[1] - largest);
  weight[lane] = first;
  weight[lane + kWarp] = second;
  const float sum = WarpSum(Add(first, second));
  __syncwarp();
  return sum;
}

// y = RMSNorm(sum / total) * silu(gate), for one head of one row. `sum` [hd] is shared memory of
// which a thread uses the elements that it wrote.
template <typename T>
__device__ void FinishHead(const PagedAttentionArgs& args, int64_t item, float total, float* sum,
                           float* scratch) {
  const int hd = static_cast<int>(args.head_dim);
  const float inverse_total = 1.0f / total;
  float squares[1] = {};
  for (int n = threadIdx.x; n < hd; n += kAttentionThreads) {
    sum[n] *= inverse_total;
    squares[0] += sum[n] * sum[n];
  }
  float scale = 1.0f;
  if (args.norm_weight != nullptr) {
    BlockSum<kAttentionThreads>(squares, scratch);
    scale = 1.0f / sqrtf(squares[0] / static_cast<float>(hd) + args.norm_eps);
  }
  for (int n = threadIdx.x; n < hd; n += kAttentionThreads) {
    float value = sum[n];
    if (args.norm_weight != nullptr) value = args.norm_weight[n] * (value * scale);
    if (args.gate != nullptr) {
      value *= Silu(ToFloat(static_cast<const T*>(args.gate)[item * hd + n]));
    }
    static_cast<T*>(args.y)[item * hd + n] = FromFloat<T>(value);
  }
}

// What is known of a row's split once its block has all of it: `sum` [hd] is shared memory of which
// a thread uses the elements n = threadIdx.x + i kAttentionThreads that it wrote. `weight` is
// shared memory, [kAttentionWarps, kMaxSplits]; `flag` likewise.
template <typename T>
__device__ void FinishSplit(const PagedAttentionArgs& args, int64_t item, int split, int count,
                            int64_t splits, float largest, float total, float* sum, float* scratch,
                            float* weight, int* flag, float* workspace, int32_t* arrivals) {
  const int hd = static_cast<int>(args.head_dim);
  if (count == 1) {
    FinishHead<T>(args, item, total, sum, scratch);
    return;
  }
  const SplitSums sums = SplitSumsOf(workspace, item, splits, split, hd);
  for (int n = threadIdx.x; n < hd; n += kAttentionThreads) sums.sum[n] = sum[n];
  if (threadIdx.x == 0) {
    *sums.largest = largest;
    *sums.total = total;
  }
  __threadfence();  // before this block is counted
  __syncthreads();
  if (threadIdx.x == 0) *flag = atomicAdd(&arrivals[item], 1) == count - 1;
  __syncthreads();
  if (*flag == 0) return;
  __threadfence();  // what is read now comes after what was counted
  if (threadIdx.x == 0) arrivals[item] = 0;

  const int lane = threadIdx.x % kWarp;
  float part_largest[2], part_total[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int s = lane + i * kWarp;
    const SplitSums of = SplitSumsOf(workspace, item, splits, s, hd);
    part_largest[i] = s < count ? *of.largest : -INFINITY;
    part_total[i] = s < count ? *of.total : 0.0f;
  }
  float* const factor = weight + threadIdx.x / kWarp * kMaxSplits;
  float most = -INFINITY;
  WeighTwo(part_largest, most, factor);
  const float all = WarpSum(
      Add(Multiply(part_total[0], factor[lane]), Multiply(part_total[1], factor[lane + kWarp])));
  for (int n = threadIdx.x; n < hd; n += kAttentionThreads) {
    const float* const from = SplitSumsOf(workspace, item, splits, 0, hd).sum + n;
    float value = 0.0f;
#pragma unroll 8
    for (int s = 0; s < count; ++s) value = MultiplyAdd(factor[s], from[s * (hd + 2)], value);
    sum[n] = value;
  }
  FinishHead<T>(args, item, all, sum, scratch);
}

}  // namespace ddl::kernels::cuda

#endif  // DDL_MODEL_KERNELS_CUDA_SPLIT_ATTENTION_CUH_
