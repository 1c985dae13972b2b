// Attention of single rows over the paged cache, for decode: split_attention.cuh says how. K lies
// transposed within a block of the cache, [hd, block_size]: a thread loads one dimension of
// neighbouring positions and needs no other thread to sum over dimensions.
//
// AttentionSplits takes every size and alignment; plain_attention.cu has what most models' are.

#include "model/kernels/cuda/split_attention.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = kAttentionThreads;
constexpr int kWarps = kAttentionWarps;
constexpr int kTile = kAttentionTile;
constexpr int64_t kMaxItems = int64_t{1} << 28;   // heads of rows: their numbers are 32 bits
constexpr int64_t kMaxLength = int64_t{1} << 28;  // likewise positions

// How the threads share the work: over packs of neighbouring positions (of K) or dimensions (of V),
// and what threads are left over that in slices of the other one.
struct Shares {
  int k_slices;  // of the dimensions
  int v_columns;
  int v_slices;  // of the positions
};

template <int kPackK, int kPackV>
__host__ __device__ Shares SharesOf(int head_dim) {
  Shares shares;
  shares.k_slices = kThreads / (kTile / kPackK);
  const int columns = (head_dim + kPackV - 1) / kPackV;
  shares.v_columns = columns < kThreads ? columns : kThreads;
  shares.v_slices = kThreads / shares.v_columns;
  return shares;
}

struct Shared {
  int64_t* v_at;   // [kTile] where a position's V is, in elements of the cache
  float* scratch;  // [warps]
  float* q;        // [hd]
  float* partial;  // [k_slices, kTile]
  float* weight;   // [warps, kTile]
  float* sum;      // [v_slices, hd]
  int* flag;
};

__host__ __device__ inline int64_t SharedFloats(const Shares& shares, int head_dim) {
  return 2 * kTile + kWarps + head_dim + (shares.k_slices + kWarps) * kTile +
         static_cast<int64_t>(shares.v_slices) * head_dim + 1;
}

__device__ inline Shared SharedOf(const Shares& shares, int head_dim) {
  Shared shared;
  shared.v_at = reinterpret_cast<int64_t*>(SharedMemory());
  shared.scratch = reinterpret_cast<float*>(shared.v_at + kTile);
  shared.q = shared.scratch + kWarps;
  shared.partial = shared.q + head_dim;
  shared.weight = shared.partial + shares.k_slices * kTile;
  shared.sum = shared.weight + kWarps * kTile;
  shared.flag = reinterpret_cast<int*>(shared.sum + shares.v_slices * head_dim);
  return shared;
}

// kPackK positions of K and kPackV dimensions of V at a time.
template <typename T, int kPackK, int kPackV>
__global__ void __launch_bounds__(kThreads, 4)
    AttentionSplits(PagedAttentionArgs args, Batch batch, int64_t splits, float* workspace,
                    int32_t* arrivals) {
  BeginKernel();
  const int64_t item = blockIdx.x;
  const int64_t t = item / args.heads, head = item % args.heads;
  const int length = batch.position[t] + 1;
  const int per_split = PositionsPerSplit(length);
  const int split = static_cast<int>(blockIdx.y);
  const int split_begin = split * per_split;
  if (split_begin >= length) return;
  const int split_end = split_begin + per_split < length ? split_begin + per_split : length;

  const int hd = static_cast<int>(args.head_dim);
  const int block_size = static_cast<int>(args.cache.block_size);
  const Shares shares = SharesOf<kPackK, kPackV>(hd);
  const Shared shared = SharedOf(shares, hd);
  const int32_t* block_table = batch.block_table + batch.row_sequence[t] * batch.block_table_stride;
  const auto cache_base = [&](int block) {
    return (block_table[block] * args.heads + head) * block_size * hd;
  };
  const float scale = 1.0f / sqrtf(static_cast<float>(hd));

  const T* q = static_cast<const T*>(args.q) + t * args.q_stride + head * hd;
  for (int n = threadIdx.x; n < hd; n += kThreads) shared.q[n] = ToFloat(q[n]);
  for (int n = threadIdx.x; n < shares.v_slices * hd; n += kThreads) shared.sum[n] = 0.0f;
  __syncthreads();

  constexpr int kGroups = kTile / kPackK;
  const int group = threadIdx.x % kGroups, k_slice = threadIdx.x / kGroups;
  const int v_slice = threadIdx.x / shares.v_columns;
  float largest = -INFINITY, total = 0.0f;
  for (int begin = split_begin; begin < split_end; begin += kTile) {
    const int count = split_end - begin < kTile ? split_end - begin : kTile;

    // Scores: this thread's positions over its slice of the dimensions. A pack stays within its
    // block; what it holds past the end is read, and not used.
    if (group * kPackK < count) {
      const int position = begin + group * kPackK;
      const int block = position / block_size;
      const T* k =
          static_cast<const T*>(args.cache.k) + cache_base(block) + (position - block * block_size);
      float score[kPackK] = {};
#pragma unroll 4
      for (int n = k_slice; n < hd; n += shares.k_slices) {
        const auto pack = LoadPack<kPackK>(k + static_cast<int64_t>(n) * block_size);
#pragma unroll
        for (int i = 0; i < kPackK; ++i) score[i] += shared.q[n] * ToFloat(pack.element[i]);
      }
#pragma unroll
      for (int i = 0; i < kPackK; ++i) {
        shared.partial[k_slice * kTile + group * kPackK + i] = score[i];
      }
    }
    __syncthreads();

    // Weights.
    float score = -INFINITY;
    if (static_cast<int>(threadIdx.x) < count) {
      score = 0.0f;
      for (int s = 0; s < shares.k_slices; ++s) score += shared.partial[s * kTile + threadIdx.x];
      score *= scale;
      const int position = begin + static_cast<int>(threadIdx.x);
      const int block = position / block_size;
      shared.v_at[threadIdx.x] =
          cache_base(block) + static_cast<int64_t>(position - block * block_size) * hd;
    }
    const float largest_before = largest;
    largest = fmaxf(largest, BlockMax<kThreads>(score, shared.scratch));
    const float rescale = expf(largest_before - largest);
    float weight[1] = {expf(score - largest)};
    if (threadIdx.x < kTile) shared.weight[threadIdx.x] = weight[0];
    BlockSum<kThreads>(weight, shared.scratch);
    total = total * rescale + weight[0];

    // V, weighted: this thread's dimensions over its slice of the positions.
    if (v_slice < shares.v_slices) {
      for (int n = threadIdx.x % shares.v_columns * kPackV; n < hd;
           n += shares.v_columns * kPackV) {
        float* sum = shared.sum + v_slice * hd + n;
        const T* v = static_cast<const T*>(args.cache.v) + n;
        float value[kPackV];
#pragma unroll
        for (int i = 0; i < kPackV; ++i) value[i] = sum[i] * rescale;
#pragma unroll 4
        for (int p = v_slice; p < count; p += shares.v_slices) {
          const auto pack = LoadPack<kPackV>(v + shared.v_at[p]);
          const float p_weight = shared.weight[p];
#pragma unroll
          for (int i = 0; i < kPackV; ++i) value[i] += p_weight * ToFloat(pack.element[i]);
        }
#pragma unroll
        for (int i = 0; i < kPackV; ++i) sum[i] = value[i];
      }
    }
    __syncthreads();
  }

  for (int n = threadIdx.x; n < hd; n += kThreads) {
    float sum = shared.sum[n];
    for (int s = 1; s < shares.v_slices; ++s) sum += shared.sum[s * hd + n];
    shared.sum[n] = sum;
  }
  FinishSplit<T>(args, item, split, (length + per_split - 1) / per_split, splits, largest, total,
                 shared.sum, shared.scratch, shared.weight, shared.flag, workspace, arrivals);
}

template <typename T, int kPackK, int kPackV>
Error LaunchPacks(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                  int64_t longest, float* workspace, int32_t* arrivals) {
  const int hd = static_cast<int>(args.head_dim);
  const int64_t splits = SplitsOf(longest);
  const int64_t shared_bytes = SharedFloats(SharesOf<kPackK, kPackV>(hd), hd) * 4;
  return Launch(AttentionSplits<T, kPackK, kPackV>, Grid{batch.tokens * args.heads, splits},
                kThreads, shared_bytes, stream, args, batch, splits, workspace, arrivals);
}

template <typename T>
Error LaunchType(Stream stream, const Batch& batch, const PagedAttentionArgs& args, int64_t longest,
                 float* workspace, int32_t* arrivals) {
  constexpr int kPack = 16 / sizeof(T);
  const auto size = static_cast<int64_t>(sizeof(T));
  const bool k_packs = args.cache.block_size % kPack == 0 && IsAligned(args.cache.k, 0, 16);
  const bool v_packs = IsAligned(args.cache.v, args.head_dim * size, 16);
  const auto launch = [&](auto function) {
    return function(stream, batch, args, longest, workspace, arrivals);
  };
  if (k_packs && v_packs) return launch(LaunchPacks<T, kPack, kPack>);
  if (k_packs) return launch(LaunchPacks<T, kPack, 1>);
  if (v_packs) return launch(LaunchPacks<T, 1, kPack>);
  return launch(LaunchPacks<T, 1, 1>);
}

}  // namespace

int64_t PagedAttentionWorkspaceFloats(int64_t tokens, const PagedAttentionArgs& args,
                                      int64_t longest) {
  const int64_t splits = SplitsOf(longest);
  return splits > 1 ? tokens * args.heads * splits * (args.head_dim + 2) : 0;
}

Error PagedAttention(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                     int64_t longest, float* workspace, int32_t* arrivals) {
  if (batch.tokens == 0) return kSuccess;
  if (args.heads < 1 || args.head_dim < 1 || args.head_dim > kMaxHeadDim ||
      args.cache.block_size < 1 || longest < 1 || longest > kMaxLength ||
      batch.tokens * args.heads > kMaxItems) {
    return kInvalidArgument;
  }
  if (IsPlain(args)) return PlainAttention(stream, batch, args, longest, workspace, arrivals);
  return args.type == Type::kFloat32
             ? LaunchType<float>(stream, batch, args, longest, workspace, arrivals)
             : LaunchType<BFloat16>(stream, batch, args, longest, workspace, arrivals);
}

}  // namespace ddl::kernels::cuda
