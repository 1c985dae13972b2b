// Attention of single rows over the paged cache, for decode. The context is split at positions that
// follow from its length alone, into kMaxSplits parts at most, and a block takes one head of one
// row over one split, tile by tile with a running maximum and sum. The block of a row that is done
// last puts its splits together, in one order whichever that is. So the order of all sums is a
// function of the row's own number of positions.
//
// K lies transposed within a block of the cache, [hd, block_size]: a thread loads one dimension of
// neighbouring positions and needs no other thread to sum over dimensions.
//
// PlainSplits is for the models' heads of 64 and 128 in bfloat16: a tile's K and V are all in
// flight before the first score, and what a warp needs of the weights it computes itself, so that a
// tile has one barrier. AttentionSplits is for everything else.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTile = 64;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxItems = int64_t{1} << 28;   // heads of rows: their numbers are 32 bits
constexpr int64_t kMaxLength = int64_t{1} << 28;  // likewise positions
static_assert(kPositionsPerSplit % kTile == 0 && kTile <= kThreads && kTile == 2 * kWarp);
static_assert(kMaxSplits == 2 * kWarp, "a lane looks at two");

// Of a context of `length` positions.
__host__ __device__ inline int PositionsPerSplit(int length) {
  int64_t positions = kPositionsPerSplit;
  while (positions * kMaxSplits < length) positions *= 2;
  return static_cast<int>(positions);
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
    BlockSum<kThreads>(squares, scratch);
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

// What is known of a row's split once its block has all of it: `sum` [hd] is shared memory of which
// a thread uses the elements n = threadIdx.x + i kThreads that it wrote. `weight` is shared memory,
// [kWarps, kMaxSplits]; `flag` likewise.
template <typename T>
__device__ void FinishSplit(const PagedAttentionArgs& args, int64_t item, int split, int count,
                            int64_t splits, float largest, float total, float* sum, float* scratch,
                            float* weight, int* flag, float* workspace, int32_t* arrivals) {
  const int hd = static_cast<int>(args.head_dim);
  if (count == 1) {
    Finish<T>(args, item, total, sum, scratch);
    return;
  }
  const Part part = PartOf(workspace, item, splits, split, hd);
  for (int n = threadIdx.x; n < hd; n += kThreads) part.sum[n] = sum[n];
  if (threadIdx.x == 0) {
    *part.largest = largest;
    *part.total = total;
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
    const Part of = PartOf(workspace, item, splits, s, hd);
    part_largest[i] = s < count ? *of.largest : -INFINITY;
    part_total[i] = s < count ? *of.total : 0.0f;
  }
  float* const factor = weight + threadIdx.x / kWarp * kMaxSplits;
  float most = -INFINITY;
  WeighTwo(part_largest, most, factor);
  const float all = WarpSum(
      Add(Multiply(part_total[0], factor[lane]), Multiply(part_total[1], factor[lane + kWarp])));
  for (int n = threadIdx.x; n < hd; n += kThreads) {
    const float* const from = PartOf(workspace, item, splits, 0, hd).sum + n;
    float value = 0.0f;
#pragma unroll 8
    for (int s = 0; s < count; ++s) value = MultiplyAdd(factor[s], from[s * (hd + 2)], value);
    sum[n] = value;
  }
  Finish<T>(args, item, all, sum, scratch);
}

// ---- Heads of 64 and 128 in bfloat16, blocks of a multiple of eight positions, all aligned

template <int kHeadDim>
struct PlainShared {
  static constexpr int kPack = 8;                       // elements of 16 bytes
  static constexpr int kGroups = kTile / kPack;         // of positions
  static constexpr int kSlices = kThreads / kGroups;    // of the dimensions of K
  static constexpr int kColumns = kHeadDim / kPack;     // of V
  static constexpr int kVSlices = kThreads / kColumns;  // of the positions of V
  static constexpr int kVRows = kTile / kVSlices;       // of a slice
  float q[kHeadDim];
  float partial[kSlices * kTile];
  float weight[kWarps * kTile];
  float sum[kVSlices * kHeadDim];
  float scratch[kWarps];
  int flag;
};

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 3)
    PlainSplits(PagedAttentionArgs args, Batch batch, int64_t splits, float* workspace,
                int32_t* arrivals) {
  BeginKernel();
  using Shared = PlainShared<kHeadDim>;
  using T = BFloat16;
  constexpr int kPack = Shared::kPack, kDims = kHeadDim / Shared::kSlices;
  constexpr int kVRows = Shared::kVRows;
  const int item = static_cast<int>(blockIdx.x), heads = static_cast<int>(args.heads);
  const int t = item / heads, head = item - t * heads;
  const int length = batch.position[t] + 1;
  const int per_split = PositionsPerSplit(length);
  const int split = static_cast<int>(blockIdx.y);
  const int split_begin = split * per_split;
  if (split_begin >= length) return;
  const int split_end = split_begin + per_split < length ? split_begin + per_split : length;

  Shared& shared = *reinterpret_cast<Shared*>(SharedMemory());
  const int block_size = static_cast<int>(args.cache.block_size);
  const int32_t* block_table = batch.block_table + batch.row_sequence[t] * batch.block_table_stride;
  const auto cache_base = [&](int block) {
    return (static_cast<int64_t>(block_table[block]) * heads + head) * block_size * kHeadDim;
  };
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = threadIdx.x % Shared::kGroups, slice = threadIdx.x / Shared::kGroups;
  const int column = threadIdx.x % Shared::kColumns, v_slice = threadIdx.x / Shared::kColumns;
  const T* const q = static_cast<const T*>(args.q) + t * args.q_stride + head * kHeadDim;
  constexpr float kScale = kHeadDim == 64 ? 0.125f : 0.08838834764831845f;  // 1 / sqrt(hd)
  if (threadIdx.x < kHeadDim) shared.q[threadIdx.x] = Multiply(ToFloat(q[threadIdx.x]), kScale);
  __syncthreads();

  float largest = -INFINITY, total = 0.0f;
  float value[kPack] = {};
  for (int begin = split_begin; begin < split_end; begin += kTile) {
    const int count = split_end - begin < kTile ? split_end - begin : kTile;
    // A pack of K stays within its block, and so do a slice's rows of V. What a pack holds past the
    // end is read, and not used.
    const int k_position = begin + (group * kPack < count ? group * kPack : 0);
    const int v_position = begin + (v_slice * kVRows < count ? v_slice * kVRows : 0);
    const int k_block = k_position / block_size, v_block = v_position / block_size;
    const int64_t k_base = cache_base(k_block), v_base = cache_base(v_block);
    Pack<T, kPack> k_pack[kDims] = {};
    if (group * kPack < count) {
      const T* const k = static_cast<const T*>(args.cache.k) + k_base +
                         (k_position - k_block * block_size) + slice * block_size;
#pragma unroll
      for (int n = 0; n < kDims; ++n) {
        k_pack[n] = LoadPack<kPack>(k + n * Shared::kSlices * block_size);
      }
    }
    Pack<T, kPack> v_pack[kVRows] = {};
    if (v_slice * kVRows < count) {
      const T* const v = static_cast<const T*>(args.cache.v) + v_base +
                         (v_position - v_block * block_size) * kHeadDim + column * kPack;
#pragma unroll
      for (int n = 0; n < kVRows; ++n) {
        if (v_slice * kVRows + n < count) v_pack[n] = LoadPack<kPack>(v + n * kHeadDim);
      }
    }

    // Scores: this thread's positions over its dimensions.
    Pack<float, kPack> score = {};
#pragma unroll
    for (int n = 0; n < kDims; ++n) {
      const float q_value = shared.q[slice + n * Shared::kSlices];
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        score.element[i] = MultiplyAdd(q_value, ToFloat(k_pack[n].element[i]), score.element[i]);
      }
    }
    StorePack(shared.partial + slice * kTile + group * kPack, score);
    __syncthreads();

    // Each warp weighs all positions.
    float scores[2] = {0.0f, 0.0f};
#pragma unroll
    for (int s = 0; s < Shared::kSlices; ++s) {
      scores[0] = Add(scores[0], shared.partial[s * kTile + lane]);
      scores[1] = Add(scores[1], shared.partial[s * kTile + lane + kWarp]);
    }
    if (lane >= count) scores[0] = -INFINITY;
    if (lane + kWarp >= count) scores[1] = -INFINITY;
    float* const weight = shared.weight + warp * kTile;
    const float largest_before = largest;
    const float sum = WeighTwo(scores, largest, weight);
    const float rescale = expf(largest_before - largest);
    total = MultiplyAdd(total, rescale, sum);

    // V, weighted: this thread's dimensions over its slice of the positions.
    const auto weights = LoadPack<kVRows>(weight + v_slice * kVRows);
#pragma unroll
    for (int i = 0; i < kPack; ++i) value[i] = Multiply(value[i], rescale);
#pragma unroll
    for (int n = 0; n < kVRows; ++n) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        value[i] = MultiplyAdd(weights.element[n], ToFloat(v_pack[n].element[i]), value[i]);
      }
    }
    __syncthreads();  // before the next tile's scores, and weights
  }

  Pack<float, kPack> values;
#pragma unroll
  for (int i = 0; i < kPack; ++i) values.element[i] = value[i];
  StorePack(shared.sum + v_slice * kHeadDim + column * kPack, values);
  __syncthreads();
  if (threadIdx.x < kHeadDim) {
    float sum = shared.sum[threadIdx.x];
#pragma unroll
    for (int s = 1; s < Shared::kVSlices; ++s) {
      sum = Add(sum, shared.sum[s * kHeadDim + threadIdx.x]);
    }
    shared.q[threadIdx.x] = sum;
  }
  FinishSplit<T>(args, item, split, (length + per_split - 1) / per_split, splits, largest, total,
                 shared.q, shared.scratch, shared.weight, &shared.flag, workspace, arrivals);
}

// ---- Everything else

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

// y of what another kernel has attended to.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    FinishItems(PagedAttentionArgs args, const T* attended) {
  BeginKernel();
  const int64_t item = blockIdx.x;
  const int hd = static_cast<int>(args.head_dim);
  float* scratch = reinterpret_cast<float*>(SharedMemory());
  float* sum = scratch + kThreads / kWarp;
  for (int n = threadIdx.x; n < hd; n += kThreads) sum[n] = ToFloat(attended[item * hd + n]);
  Finish<T>(args, item, 1.0f, sum, scratch);
}

// The most splits that a row of up to `longest` positions has.
int64_t Splits(int64_t longest) {
  const int64_t splits = DivideUp(longest, kPositionsPerSplit);
  return splits < kMaxSplits ? splits : kMaxSplits;
}

template <typename T, int kPackK, int kPackV>
Error LaunchPacks(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                  int64_t longest, float* workspace, int32_t* arrivals) {
  const int hd = static_cast<int>(args.head_dim);
  const int64_t splits = Splits(longest);
  const int64_t shared_bytes = SharedFloats(SharesOf<kPackK, kPackV>(hd), hd) * 4;
  return Launch(AttentionSplits<T, kPackK, kPackV>, Grid{batch.tokens * args.heads, splits},
                kThreads, shared_bytes, stream, args, batch, splits, workspace, arrivals);
}

template <int kHeadDim>
Error LaunchPlain(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                  int64_t longest, float* workspace, int32_t* arrivals) {
  const int64_t splits = Splits(longest);
  return Launch(PlainSplits<kHeadDim>, Grid{batch.tokens * args.heads, splits}, kThreads,
                static_cast<int64_t>(sizeof(PlainShared<kHeadDim>)), stream, args, batch, splits,
                workspace, arrivals);
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
  if (sizeof(T) == 2 && k_packs && v_packs) {
    if (args.head_dim == 64) return launch(LaunchPlain<64>);
    if (args.head_dim == 128) return launch(LaunchPlain<128>);
  }
  if (k_packs && v_packs) return launch(LaunchPacks<T, kPack, kPack>);
  if (k_packs) return launch(LaunchPacks<T, kPack, 1>);
  if (v_packs) return launch(LaunchPacks<T, 1, kPack>);
  return launch(LaunchPacks<T, 1, 1>);
}

}  // namespace

int64_t PagedAttentionWorkspaceFloats(int64_t tokens, const PagedAttentionArgs& args,
                                      int64_t longest) {
  const int64_t splits = Splits(longest);
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
  return args.type == Type::kFloat32
             ? LaunchType<float>(stream, batch, args, longest, workspace, arrivals)
             : LaunchType<BFloat16>(stream, batch, args, longest, workspace, arrivals);
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
