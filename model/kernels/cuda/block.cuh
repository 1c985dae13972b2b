#ifndef DDL_MODEL_KERNELS_CUDA_BLOCK_CUH_
#define DDL_MODEL_KERNELS_CUDA_BLOCK_CUH_

// What the kernels share: packs of elements, scalar functions, sums over a warp or a block.

#include "model/kernels/cuda/device.cuh"

namespace ddl::kernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- Packs: up to N neighbouring elements, moved in accesses of up to 16 bytes

template <typename T, int N>
struct Pack {
  T element[N];
};

struct alignas(16) Bytes16 {
  uint32_t word[4];
};
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using Type = uint16_t;
};
template <>
struct WordOf<4> {
  using Type = uint32_t;
};
template <>
struct WordOf<8> {
  using Type = uint64_t;
};
template <>
struct WordOf<16> {
  using Type = Bytes16;
};

// The widest access for a pack, and with it the alignment that its address needs.
template <typename T, int N>
constexpr int kAccessBytes = N * sizeof(T) < 16 ? N* static_cast<int>(sizeof(T)) : 16;

template <int N, typename T>
__device__ Pack<T, N> LoadPack(const T* p) {
  constexpr int kBytes = kAccessBytes<T, N>;
  using Word = typename WordOf<kBytes>::Type;
  Pack<T, N> pack;
#pragma unroll
  for (int n = 0; n < static_cast<int>(N * sizeof(T)) / kBytes; ++n) {
    const Word word = LoadWord<Word>(reinterpret_cast<const unsigned char*>(p) + n * kBytes);
    memcpy(reinterpret_cast<unsigned char*>(&pack) + n * kBytes, &word, kBytes);
  }
  return pack;
}

template <int N, typename T>
__device__ void StorePack(T* p, const Pack<T, N>& pack) {
  constexpr int kBytes = kAccessBytes<T, N>;
  using Word = typename WordOf<kBytes>::Type;
#pragma unroll
  for (int n = 0; n < static_cast<int>(N * sizeof(T)) / kBytes; ++n) {
    Word word;
    memcpy(&word, reinterpret_cast<const unsigned char*>(&pack) + n * kBytes, kBytes);
    StoreWord<Word>(reinterpret_cast<unsigned char*>(p) + n * kBytes, word);
  }
}

// Whether packs that start every `stride_bytes` from p are aligned to `alignment` bytes. A null
// pointer is not read, so it is.
inline bool IsAligned(const void* p, int64_t stride_bytes, int64_t alignment) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(alignment) == 0 &&
         stride_bytes % alignment == 0;
}

inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- The batch

// The slot whose tails a sequence of the batch goes on from.
__device__ inline int64_t TailSource(const Batch& batch, int64_t sequence) {
  return batch.tail_source != nullptr ? batch.tail_source[sequence] : batch.slot[sequence];
}

// ---- Scalar functions

__device__ inline float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float Silu(float x) { return x * Sigmoid(x); }

__device__ inline float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kIdentity:
      return x;
    case Activation::kSilu:
      return Silu(x);
    case Activation::kRelu:
      return x > 0.0f ? x : 0.0f;
    case Activation::kElu1:
      return x > 0.0f ? x + 1.0f : expm1f(x) + 1.0f;
  }
  return x;
}

// ---- Sums, in an order that only the number of threads decides. All threads take part and all
// get the result.

template <typename Number>
__device__ Number WarpSum(Number value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

__device__ inline float WarpMax(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// N sums at once. `scratch` is shared memory for N numbers per warp; it can be used again after.
template <int N, typename Number>
__device__ void BlockSum(Number (&sum)[N], Number* scratch) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    sum[n] = WarpSum(sum[n]);
    if (lane == 0) scratch[warp * N + n] = sum[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    sum[n] = scratch[n];
    for (int w = 1; w < warps; ++w) sum[n] += scratch[w * N + n];
  }
  __syncthreads();
}

// `scratch` is shared memory for a number per warp.
__device__ inline float BlockMax(float value, float* scratch) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
  value = WarpMax(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  for (int w = 0; w < warps; ++w) value = fmaxf(value, scratch[w]);
  __syncthreads();
  return value;
}

}  // namespace ddl::kernels::cuda

#endif  // DDL_MODEL_KERNELS_CUDA_BLOCK_CUH_
