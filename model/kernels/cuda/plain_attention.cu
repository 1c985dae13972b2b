// PagedAttention for the models' heads of 64 and 128 in bfloat16: a tile's K and V are all in
// flight before the first score, and what a warp needs of the weights it computes itself, so that a
// tile has one barrier.

#include "model/kernels/cuda/split_attention.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = kAttentionThreads;
constexpr int kWarps = kAttentionWarps;
constexpr int kTile = kAttentionTile;

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

template <int kHeadDim>
Error LaunchPlain(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                  int64_t longest, float* workspace, int32_t* arrivals) {
  const int64_t splits = SplitsOf(longest);
  return Launch(PlainSplits<kHeadDim>, Grid{batch.tokens * args.heads, splits}, kThreads,
                static_cast<int64_t>(sizeof(PlainShared<kHeadDim>)), stream, args, batch, splits,
                workspace, arrivals);
}

}  // namespace

bool IsPlain(const PagedAttentionArgs& args) {
  return args.type == Type::kBFloat16 && (args.head_dim == 64 || args.head_dim == 128) &&
         args.cache.block_size % 8 == 0 && IsAligned(args.cache.k, 0, 16) &&
         IsAligned(args.cache.v, 0, 16);
}

Error PlainAttention(Stream stream, const Batch& batch, const PagedAttentionArgs& args,
                     int64_t longest, float* workspace, int32_t* arrivals) {
  const auto launch = args.head_dim == 64 ? LaunchPlain<64> : LaunchPlain<128>;
  return launch(stream, batch, args, longest, workspace, arrivals);
}

}  // namespace ddl::kernels::cuda
