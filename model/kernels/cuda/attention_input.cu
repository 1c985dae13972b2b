// Between the q, k, v products and attention. A warp owns one head of one row of q, k or v, and
// keeps it in shared memory in float32 from the load to the one rounding at the store.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpsPerBlock = kThreads / kWarp;
constexpr int64_t kMaxHeadDim = 1024;

// sigmoid(w . c), the same for all lanes.
template <typename T>
__device__ float ShiftAlpha(const float* w, const T* c, int64_t d, int lane) {
  float dot = 0.0f;
  for (int64_t i = lane; i < d; i += kWarp) dot += w[i] * ToFloat(c[i]);
  return Sigmoid(WarpSum(dot));
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

// `save_tails`: every sequence has one row, which leaves its o for the next itself.
template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads, 4)
    AttentionInputHeads(AttentionInputArgs args, Batch batch, bool save_tails) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  const int64_t heads = args.heads;
  if (item >= batch.tokens * 3 * heads) return;  // whole warps leave, and no barrier is the block's
  const int64_t head = item % heads, which = item / heads % 3, t = item / heads / 3;
  const int hd = static_cast<int>(args.head_dim);
  float* z = reinterpret_cast<float*>(SharedMemory()) + warp * hd;
  T* row = static_cast<T*>(args.qkv) + item * hd;
  const int64_t position = batch.position[t], sequence = batch.row_sequence[t];
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
    const T* c = static_cast<const T*>(args.c) + t * args.d;
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

  const int64_t block_size = args.cache.block_size;
  const int64_t block =
      batch.block_table[sequence * batch.block_table_stride + position / block_size];
  const int64_t cache_base = (block * heads + head) * block_size * hd;
  const int64_t offset = position % block_size;
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

template <typename T>
Error LaunchType(Stream stream, const Batch& batch, const AttentionInputArgs& args) {
  constexpr int kElements = 16 / sizeof(T);
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
      args.cache.block_size < 1 || args.rotary_dims > args.head_dim) {
    return kInvalidArgument;
  }
  return args.type == Type::kFloat32 ? LaunchType<float>(stream, batch, args)
                                     : LaunchType<BFloat16>(stream, batch, args);
}

}  // namespace ddl::kernels::cuda
