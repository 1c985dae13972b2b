// Between the q, k, v products and attention. Two kernels: PlainHeads for what a model of the paper
// has, heads of 64 or 128 that are rotated whole and neither shifted nor activated, in registers;
// AttentionInputHeads for everything else, where a warp owns one head of one row of q, k or v, and
// keeps it in shared memory in float32 from the load to the one rounding at the store.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpsPerBlock = kThreads / kWarp;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxItems = int64_t{1} << 28;  // heads of rows: their numbers are 32 bits

// sigmoid(w . c), the same for all lanes.
template <typename T>
__device__ float ShiftAlpha(const float* w, const T* c, int64_t d, int lane) {
  float dot = 0.0f;
  for (int64_t i = lane; i < d; i += kWarp) dot += w[i] * ToFloat(c[i]);
  return Sigmoid(WarpSum(dot));
}

// Where a head's part of a block of a sequence begins in the K and V caches, in elements.
__device__ inline int64_t CacheBase(const AttentionInputArgs& args, const Batch& batch,
                                    int64_t sequence, int block, int head) {
  const int64_t physical = batch.block_table[sequence * batch.block_table_stride + block];
  return (physical * args.heads + head) * args.cache.block_size * args.head_dim;
}

// z is a warp's row in shared memory; lanes hand elements to each other between the barriers.
__device__ inline void RotateHead(const AttentionInputArgs& args, int64_t position, int lane,
                                  float* z) {
  const int half = static_cast<int>(args.rotary_dims) / 2;
  const float* cosine = args.rope_cos + position * half;
  const float* sine = args.rope_sin + position * half;
  for (int n = lane; n < half; n += kWarp) {
    const float a = z[n], b = z[half + n];
    z[n] = a * cosine[n] - b * sine[n];
    z[half + n] = a * sine[n] + b * cosine[n];
  }
  __syncwarp();
}

__device__ inline void NormHead(const float* weight, float eps, int head_dim, int lane, float* z) {
  float sum = 0.0f;
  for (int n = lane; n < head_dim; n += kWarp) sum += z[n] * z[n];
  const float scale = 1.0f / sqrtf(WarpSum(sum) / static_cast<float>(head_dim) + eps);
  for (int n = lane; n < head_dim; n += kWarp) z[n] = weight[n] * (z[n] * scale);
  __syncwarp();
}

// A warp takes one head of neighbouring rows of q, k or v, a lane 16 bytes of each of kPacks of
// them. K is transposed in shared memory, so that neighbouring rows, which mostly are neighbouring
// positions, are stored side by side. The roundings are written out: they do not depend on kPacks.
template <typename T, int kHeadDim, int kPacks>
__global__ void __launch_bounds__(kThreads, 4) PlainHeads(AttentionInputArgs args, Batch batch) {
  BeginKernel();
  constexpr int kElements = 16 / sizeof(T);
  constexpr int kLanes = kHeadDim / kElements;   // of a row
  constexpr int kTogether = kWarp / kLanes;      // rows
  constexpr int kRows = kTogether * kPacks;      // of the warp
  constexpr int kStride = kHeadDim + kElements;  // of a row of K in shared memory
  static_assert(kLanes <= kWarp && kRows <= kWarp && kWarp % kRows == 0);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int heads = static_cast<int>(args.heads), tokens = static_cast<int>(batch.tokens);
  const int item = static_cast<int>(blockIdx.x) * kWarpsPerBlock + warp;
  const int head = item % heads, which = item / heads % 3, first = item / heads / 3 * kRows;
  if (first >= tokens) return;
  const int together = lane / kLanes, part = lane % kLanes;
  const int block_size = static_cast<int>(args.cache.block_size);

  T* const rows = static_cast<T*>(args.qkv) + part * kElements;
  const auto row_at = [&](int n) {
    return (static_cast<int64_t>(first + n * kTogether + together) * 3 * heads + which * heads +
            head) *
           kHeadDim;
  };
  Pack<T, kElements> pack[kPacks] = {};
#pragma unroll
  for (int n = 0; n < kPacks; ++n) {
    if (first + n * kTogether + together < tokens) pack[n] = LoadPack<kElements>(rows + row_at(n));
  }
  // A lane looks up one row, for all.
  int position = 0, offset = 0;
  int64_t base = 0;
  const int looked_up = first + lane % kRows;
  if (looked_up < tokens) {
    position = batch.position[looked_up];
    if (which > 0) {
      const int block = position / block_size;
      base = CacheBase(args, batch, batch.row_sequence[looked_up], block, head);
      offset = position - block * block_size;
    }
  }

  if (which < 2) {
    constexpr int kHalf = kLanes / 2;  // lanes
    const bool upper = part >= kHalf;
    const float* const norm = which == 0 ? args.q_norm : args.k_norm;
    Pack<float, kElements> weight = {};
    if (norm != nullptr) weight = LoadPack<kElements>(norm + part * kElements);
#pragma unroll
    for (int n = 0; n < kPacks; ++n) {
      const int row_position = __shfl_sync(kAllLanes, position, n * kTogether + together);
      const int angle = row_position * (kHeadDim / 2) + part % kHalf * kElements;
      const auto cosine = LoadPack<kElements>(args.rope_cos + angle);
      const auto sine = LoadPack<kElements>(args.rope_sin + angle);
      float z[kElements];
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        z[i] = ToFloat(pack[n].element[i]);
        const float other = __shfl_xor_sync(kAllLanes, z[i], kHalf);
        const float signed_sine = upper ? sine.element[i] : -sine.element[i];
        z[i] = MultiplyAdd(z[i], cosine.element[i], Multiply(other, signed_sine));
        sum = MultiplyAdd(z[i], z[i], sum);
      }
      if (norm != nullptr) {
#pragma unroll
        for (int distance = kHalf; distance > 0; distance /= 2) {
          sum = Add(sum, __shfl_xor_sync(kAllLanes, sum, distance));
        }
        const float scale = 1.0f / sqrtf(MultiplyAdd(sum, 1.0f / kHeadDim, args.norm_eps));
#pragma unroll
        for (int i = 0; i < kElements; ++i)
          z[i] = Multiply(weight.element[i], Multiply(z[i], scale));
      }
#pragma unroll
      for (int i = 0; i < kElements; ++i) pack[n].element[i] = FromFloat<T>(z[i]);
    }
  }

  if (which == 0) {
#pragma unroll
    for (int n = 0; n < kPacks; ++n) {
      if (first + n * kTogether + together < tokens) StorePack(rows + row_at(n), pack[n]);
    }
  } else if (which == 2) {
#pragma unroll
    for (int n = 0; n < kPacks; ++n) {
      const int row = n * kTogether + together;
      const int64_t row_base = __shfl_sync(kAllLanes, base, row);
      const int row_offset = __shfl_sync(kAllLanes, offset, row);
      if (first + row >= tokens) continue;
      StorePack(static_cast<T*>(args.cache.v) + row_base + row_offset * kHeadDim + part * kElements,
                pack[n]);
    }
  } else {
    T* const tile = reinterpret_cast<T*>(SharedMemory()) + warp * kRows * kStride;
#pragma unroll
    for (int n = 0; n < kPacks; ++n) {
      StorePack(tile + (n * kTogether + together) * kStride + part * kElements, pack[n]);
    }
    __syncwarp();
    if (looked_up < tokens) {
      const T* const from = tile + lane % kRows * kStride;
      T* const to = static_cast<T*>(args.cache.k) + base + offset;
#pragma unroll 8
      for (int i = lane / kRows; i < kHeadDim; i += kWarp / kRows) to[i * block_size] = from[i];
    }
  }
}

// `save_tails`: every sequence has one row, which leaves its o for the next itself.
template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads, 4)
    AttentionInputHeads(AttentionInputArgs args, Batch batch, bool save_tails) {
  BeginKernel();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int item = static_cast<int>(blockIdx.x) * kWarpsPerBlock + warp;
  const int heads = static_cast<int>(args.heads);
  // Whole warps leave, and no barrier is the block's.
  if (item >= static_cast<int>(batch.tokens) * 3 * heads) return;
  const int head = item % heads, which = item / heads % 3, t = item / heads / 3;
  const int hd = static_cast<int>(args.head_dim);
  float* z = reinterpret_cast<float*>(SharedMemory()) + warp * hd;
  T* row = static_cast<T*>(args.qkv) + static_cast<int64_t>(item) * hd;
  const int position = batch.position[t], sequence = batch.row_sequence[t];
  const Shift& shift = which == 1 ? args.k_shift : args.v_shift;
  const Activation activation = which == 0   ? args.q_activation
                                : which == 1 ? args.k_activation
                                             : args.v_activation;

  const bool shifted = which != 0 && shift.weight != nullptr;
  float alpha = 0.0f;
  const T* previous_row = nullptr;  // where o_{t-1} is: in the batch, in the tail, or nowhere
  const float* source = nullptr;    // the tail it is in
  float* target = nullptr;          // the tails that take o_t
  float* saved = nullptr;
  if (shifted) {
    const T* c = static_cast<const T*>(args.c) + static_cast<int64_t>(t) * args.d;
    alpha = ShiftAlpha(shift.weight + head * args.d, c, args.d, lane);
    const auto tail = [&](int64_t slot) {
      return shift.tail + slot * shift.tail_stride + head * hd;
    };
    if (position > 0) {
      if (t == batch.row_begin[sequence]) {
        source = tail(TailSource(batch, sequence));
      } else {
        previous_row = row - 3 * heads * hd;
      }
    }
    if (save_tails) {
      target = tail(batch.slot[sequence]);
      if (batch.row_save != nullptr && batch.row_save[t] >= 0) saved = tail(batch.row_save[t]);
    }
  }
  for (int n = lane * kElements; n < hd; n += kWarp * kElements) {
    const auto pack = LoadPack<kElements>(row + n);
    Pack<T, kElements> previous_pack = {};
    if (previous_row != nullptr) previous_pack = LoadPack<kElements>(previous_row + n);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      float value = ToFloat(pack.element[i]);
      if (shifted) {
        const float previous =
            source != nullptr ? source[n + i] : ToFloat(previous_pack.element[i]);
        if (target != nullptr) target[n + i] = value;
        if (saved != nullptr) saved[n + i] = value;
        value = alpha * previous + (1.0f - alpha) * value;
      }
      z[n + i] = Activate(activation, value);
    }
  }
  __syncwarp();
  if (which < 2) {
    RotateHead(args, position, lane, z);
    const float* norm = which == 0 ? args.q_norm : args.k_norm;
    if (norm != nullptr) NormHead(norm, args.norm_eps, hd, lane, z);
  }

  const int block_size = static_cast<int>(args.cache.block_size);
  const int64_t cache_base = CacheBase(args, batch, sequence, position / block_size, head);
  const int offset = position % block_size;
  if (which == 1) {
    T* k = static_cast<T*>(args.cache.k) + cache_base + offset;
    for (int n = lane; n < hd; n += kWarp) k[n * block_size] = FromFloat<T>(z[n]);
    return;
  }
  T* out = which == 0 ? row : static_cast<T*>(args.cache.v) + cache_base + offset * hd;
  for (int n = lane * kElements; n < hd; n += kWarp * kElements) {
    Pack<T, kElements> pack;
#pragma unroll
    for (int i = 0; i < kElements; ++i) pack.element[i] = FromFloat<T>(z[n + i]);
    StorePack(out + n, pack);
  }
}

// After every row has read what was there: o of each row that leaves it in a tail.
template <typename T>
__global__ void __launch_bounds__(kThreads) SaveShiftTails(AttentionInputArgs args, Batch batch) {
  BeginKernel();
  const int64_t t = blockIdx.x;
  const int64_t sequence = batch.row_sequence[t];
  const bool last = t == batch.row_begin[sequence + 1] - 1;
  const int64_t save = batch.row_save != nullptr ? batch.row_save[t] : -1;
  if (!last && save < 0) return;
  const int64_t width = args.heads * args.head_dim;
  for (int which = 1; which < 3; ++which) {
    const Shift& shift = which == 1 ? args.k_shift : args.v_shift;
    if (shift.weight == nullptr) continue;
    const T* row = static_cast<const T*>(args.qkv) + (t * 3 + which) * width;
    for (int64_t n = threadIdx.x; n < width; n += kThreads) {
      const float value = ToFloat(row[n]);
      if (last) shift.tail[batch.slot[sequence] * shift.tail_stride + n] = value;
      if (save >= 0) shift.tail[save * shift.tail_stride + n] = value;
    }
  }
}

template <typename T, int kHeadDim, int kPacks>
Error LaunchPlain(Stream stream, const Batch& batch, const AttentionInputArgs& args) {
  constexpr int kElements = 16 / sizeof(T);
  constexpr int kRows = kWarp / (kHeadDim / kElements) * kPacks;
  const Grid grid{DivideUp(DivideUp(batch.tokens, kRows) * 3 * args.heads, kWarpsPerBlock)};
  const int64_t shared_bytes =
      kWarpsPerBlock * kRows * (kHeadDim + kElements) * static_cast<int64_t>(sizeof(T));
  return Launch(PlainHeads<T, kHeadDim, kPacks>, grid, kThreads, shared_bytes, stream, args, batch);
}

// Whether PlainHeads computes this.
bool IsPlain(const AttentionInputArgs& args, int64_t element_bytes) {
  const int64_t hd = args.head_dim;
  return (hd == 64 || hd == 128) && args.rotary_dims == hd && args.k_shift.weight == nullptr &&
         args.v_shift.weight == nullptr && args.q_activation == Activation::kIdentity &&
         args.k_activation == Activation::kIdentity && args.v_activation == Activation::kIdentity &&
         IsAligned(args.qkv, hd * element_bytes, 16) && IsAligned(args.cache.v, 0, 16) &&
         IsAligned(args.rope_cos, 0, 16) && IsAligned(args.rope_sin, 0, 16) &&
         IsAligned(args.q_norm, 0, 16) && IsAligned(args.k_norm, 0, 16);
}

template <typename T>
Error LaunchType(Stream stream, const Batch& batch, const AttentionInputArgs& args) {
  constexpr int kElements = 16 / sizeof(T);
  if (IsPlain(args, sizeof(T))) {
    // Few rows are spread over more warps.
    constexpr int64_t kManyTokens = 256;
    const bool many = batch.tokens >= kManyTokens;
    if (args.head_dim == 64) {
      return many ? LaunchPlain<T, 64, 4>(stream, batch, args)
                  : LaunchPlain<T, 64, 1>(stream, batch, args);
    }
    return many ? LaunchPlain<T, 128, 4>(stream, batch, args)
                : LaunchPlain<T, 128, 1>(stream, batch, args);
  }
  const bool shifts = args.k_shift.weight != nullptr || args.v_shift.weight != nullptr;
  const bool single = batch.tokens == batch.sequences;
  const Grid grid{DivideUp(batch.tokens * 3 * args.heads, kWarpsPerBlock)};
  const int64_t shared_bytes = kWarpsPerBlock * args.head_dim * 4;
  const int64_t row_bytes = args.head_dim * static_cast<int64_t>(sizeof(T));
  const bool packs = IsAligned(args.qkv, row_bytes, 16) && IsAligned(args.cache.v, row_bytes, 16);
  const auto kernel = packs ? AttentionInputHeads<T, kElements> : AttentionInputHeads<T, 1>;
  const Error error =
      Launch(kernel, grid, kThreads, shared_bytes, stream, args, batch, shifts && single);
  if (error != kSuccess || !shifts || single) return error;
  return Launch(SaveShiftTails<T>, Grid{batch.tokens}, kThreads, 0, stream, args, batch);
}

}  // namespace

Error AttentionInput(Stream stream, const Batch& batch, const AttentionInputArgs& args) {
  if (batch.tokens == 0) return kSuccess;
  if (args.heads < 1 || args.head_dim < 1 || args.head_dim > kMaxHeadDim ||
      args.cache.block_size < 1 || args.rotary_dims > args.head_dim ||
      batch.tokens * args.heads > kMaxItems) {
    return kInvalidArgument;
  }
  return args.type == Type::kFloat32 ? LaunchType<float>(stream, batch, args)
                                     : LaunchType<BFloat16>(stream, batch, args);
}

}  // namespace ddl::kernels::cuda
