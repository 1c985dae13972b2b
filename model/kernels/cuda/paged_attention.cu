// Attention of single rows over the paged cache, for decode. The context is split at absolute
// positions, 0, kPositionsPerSplit, 2 kPositionsPerSplit..., and a block takes one head of one row
// over one split, tile by tile with a running maximum and sum. A row of several splits is put
// together by a second kernel in the order of the positions. So the order of all sums is a function
// of the row's own number of positions.
//
// K lies transposed within a block of the cache, [hd, block_size]: a thread loads one dimension of
// neighbouring positions and needs no other thread to sum over dimensions.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 128;
constexpr int64_t kMaxHeadDim = 1024;
static_assert(kPositionsPerSplit % kTile == 0);
static_assert(kTile == kThreads, "a thread weighs one position of a tile");

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
  float* weight;   // [kTile]
  float* sum;      // [v_slices, hd]
};

__host__ __device__ inline int64_t SharedFloats(const Shares& shares, int head_dim) {
  return 2 * kTile + kThreads / kWarp + head_dim + (shares.k_slices + 1) * kTile +
         static_cast<int64_t>(shares.v_slices) * head_dim;
}

__device__ inline Shared SharedOf(const Shares& shares, int head_dim) {
  Shared shared;
  shared.v_at = reinterpret_cast<int64_t*>(SharedMemory());
  shared.scratch = reinterpret_cast<float*>(shared.v_at + kTile);
  shared.q = shared.scratch + kThreads / kWarp;
  shared.partial = shared.q + head_dim;
  shared.weight = shared.partial + shares.k_slices * kTile;
  shared.sum = shared.weight + kTile;
  return shared;
}

// Of a split: the largest score, the sum of exp(score - largest), and these times V, [hd].
struct Part {
  float* largest;
  float* total;
  float* sum;
};

__host__ __device__ inline Part PartOf(float* workspace, int64_t item, int64_t splits,
                                       int64_t split, int64_t head_dim) {
  float* base = workspace + (item * splits + split) * (head_dim + 2);
  return {base, base + 1, base + 2};
}

// y = RMSNorm(sum / total) * silu(gate), for one head of one row. `sum` [hd] is shared memory of
// which a thread uses the elements that it wrote.
template <typename T>
__device__ void Finish(const PagedAttentionArgs& args, int64_t item, float total, float* sum,
                       float* scratch) {
  const int hd = static_cast<int>(args.head_dim);
  const float inverse_total = 1.0f / total;
  float squares[1] = {};
  for (int n = threadIdx.x; n < hd; n += kThreads) {
    sum[n] *= inverse_total;
    squares[0] += sum[n] * sum[n];
  }
  float scale = 1.0f;
  if (args.norm_weight != nullptr) {
    BlockSum(squares, scratch);
    scale = 1.0f / sqrtf(squares[0] / static_cast<float>(hd) + args.norm_eps);
  }
  for (int n = threadIdx.x; n < hd; n += kThreads) {
    float value = sum[n];
    if (args.norm_weight != nullptr) value = args.norm_weight[n] * (value * scale);
    if (args.gate != nullptr) {
      value *= Silu(ToFloat(static_cast<const T*>(args.gate)[item * hd + n]));
    }
    static_cast<T*>(args.y)[item * hd + n] = FromFloat<T>(value);
  }
}

// kPackK positions of K and kPackV dimensions of V at a time.
template <typename T, int kPackK, int kPackV>
__global__ void __launch_bounds__(kThreads, 4)
    AttentionSplits(PagedAttentionArgs args, Batch batch, int64_t splits, float* workspace) {
  const int64_t item = blockIdx.x;
  const int64_t t = item / args.heads, head = item % args.heads;
  const int length = batch.position[t] + 1;
  const int64_t split = blockIdx.y;
  const int split_begin = static_cast<int>(split * kPositionsPerSplit);
  if (split_begin >= length) return;
  constexpr int kSplit = static_cast<int>(kPositionsPerSplit);
  const int split_end = split_begin + kSplit < length ? split_begin + kSplit : length;

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
    largest = fmaxf(largest, BlockMax(score, shared.scratch));
    const float rescale = expf(largest_before - largest);
    float weight[1] = {expf(score - largest)};
    shared.weight[threadIdx.x] = weight[0];
    BlockSum(weight, shared.scratch);
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

  const bool only = length <= kPositionsPerSplit;
  const Part part = PartOf(workspace, item, splits, split, hd);
  for (int n = threadIdx.x; n < hd; n += kThreads) {
    float sum = shared.sum[n];
    for (int s = 1; s < shares.v_slices; ++s) sum += shared.sum[s * hd + n];
    if (only) {
      shared.sum[n] = sum;
    } else {
      part.sum[n] = sum;
    }
  }
  if (only) {
    Finish<T>(args, item, total, shared.sum, shared.scratch);
  } else if (threadIdx.x == 0) {
    *part.largest = largest;
    *part.total = total;
  }
}

// Puts the splits of a row together, first to last.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    CombineSplits(PagedAttentionArgs args, Batch batch, int64_t splits, float* workspace) {
  const int64_t item = blockIdx.x;
  const int64_t length = static_cast<int64_t>(batch.position[item / args.heads]) + 1;
  if (length <= kPositionsPerSplit) return;  // complete already
  const int64_t count = (length + kPositionsPerSplit - 1) / kPositionsPerSplit;
  const int hd = static_cast<int>(args.head_dim);
  float* scratch = reinterpret_cast<float*>(SharedMemory());
  float* sum = scratch + kThreads / kWarp;
  float largest = -INFINITY;
  for (int64_t s = 0; s < count; ++s) {
    largest = fmaxf(largest, *PartOf(workspace, item, splits, s, hd).largest);
  }
  float total = 0.0f;
  for (int64_t s = 0; s < count; ++s) {
    const Part part = PartOf(workspace, item, splits, s, hd);
    total += *part.total * expf(*part.largest - largest);
  }
  for (int n = threadIdx.x; n < hd; n += kThreads) {
    float value = 0.0f;
    for (int64_t s = 0; s < count; ++s) {
      const Part part = PartOf(workspace, item, splits, s, hd);
      value += part.sum[n] * expf(*part.largest - largest);
    }
    sum[n] = value;
  }
  Finish<T>(args, item, total, sum, scratch);
}

// y of what another kernel has attended to.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    FinishItems(PagedAttentionArgs args, const T* attended) {
  const int64_t item = blockIdx.x;
  const int hd = static_cast<int>(args.head_dim);
  float* scratch = reinterpret_cast<float*>(SharedMemory());
  float* sum = scratch + kThreads / kWarp;
  for (int n = threadIdx.x; n < hd; n += kThreads) sum[n] = ToFloat(attended[item * hd + n]);
  Finish<T>(args, item, 1.0f, sum, scratch);
}

int64_t Splits(int64_t longest) { return DivideUp(longest, kPositionsPerSplit); }

template <typename T, int kPackK, int kPackV>
Error LaunchPacks(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                  int64_t longest, float* workspace) {
  const int hd = static_cast<int>(args.head_dim);
  const int64_t items = batch.tokens * args.heads, splits = Splits(longest);
  const int64_t shared_bytes = SharedFloats(SharesOf<kPackK, kPackV>(hd), hd) * 4;
  const Error error = Launch(AttentionSplits<T, kPackK, kPackV>, Grid{items, splits}, kThreads,
                             shared_bytes, stream, args, batch, splits, workspace);
  if (error != kSuccess || splits == 1) return error;
  return Launch(CombineSplits<T>, Grid{items}, kThreads, (kThreads / kWarp + hd) * 4, stream, args,
                batch, splits, workspace);
}

template <typename T>
Error LaunchType(Stream stream, const Batch& batch, const PagedAttentionArgs& args, int64_t longest,
                 float* workspace) {
  constexpr int kPack = 16 / sizeof(T);
  const auto size = static_cast<int64_t>(sizeof(T));
  const bool k_packs = args.cache.block_size % kPack == 0 && IsAligned(args.cache.k, 0, 16);
  const bool v_packs = IsAligned(args.cache.v, args.head_dim * size, 16);
  if (k_packs && v_packs) {
    return LaunchPacks<T, kPack, kPack>(stream, batch, args, longest, workspace);
  }
  if (k_packs) return LaunchPacks<T, kPack, 1>(stream, batch, args, longest, workspace);
  if (v_packs) return LaunchPacks<T, 1, kPack>(stream, batch, args, longest, workspace);
  return LaunchPacks<T, 1, 1>(stream, batch, args, longest, workspace);
}

}  // namespace

int64_t PagedAttentionWorkspaceFloats(int64_t tokens, const PagedAttentionArgs& args,
                                      int64_t longest) {
  const int64_t splits = Splits(longest);
  return splits > 1 ? tokens * args.heads * splits * (args.head_dim + 2) : 0;
}

Error PagedAttention(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                     int64_t longest, float* workspace) {
  if (batch.tokens == 0) return kSuccess;
  if (args.heads < 1 || args.head_dim < 1 || args.head_dim > kMaxHeadDim ||
      args.cache.block_size < 1 || longest < 1 || Splits(longest) > 65535) {
    return kInvalidArgument;
  }
  return args.type == Type::kFloat32
             ? LaunchType<float>(stream, batch, args, longest, workspace)
             : LaunchType<BFloat16>(stream, batch, args, longest, workspace);
}

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
