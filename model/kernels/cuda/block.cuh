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

// Of weights, which nothing writes while kernels run.
template <int N>
__device__ Pack<float, N> LoadWeights(const float* p) {
  constexpr int kBytes = kAccessBytes<float, N>;
  using Word = typename WordOf<kBytes>::Type;
  Pack<float, N> pack;
#pragma unroll
  for (int n = 0; n < static_cast<int>(N * sizeof(float)) / kBytes; ++n) {
    const Word word =
        LoadConstantWord<Word>(reinterpret_cast<const unsigned char*>(p) + n * kBytes);
    memcpy(reinterpret_cast<unsigned char*>(&pack) + n * kBytes, &word, kBytes);
  }
  return pack;
}

template <typename T, int N>
__device__ Pack<T, N> Round(const float (&value)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int n = 0; n + 1 < N; n += 2) RoundPair(value[n], value[n + 1], &pack.element[n]);
  if constexpr (N % 2 == 1) pack.element[N - 1] = FromFloat<T>(value[N - 1]);
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

__host__ __device__ constexpr int PowerOfTwoFrom(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// Each lane hands another one kHalf of the 2 kHalf numbers that both have, and adds what it gets to
// the half that it keeps, until it has one left; `index` becomes that one's place.
template <int kHalf, int kPadded, typename Number>
__device__ void FoldHalves(Number (&part)[kPadded], int* index) {
  if constexpr (kHalf > 0) {
    constexpr int kDistance = kWarp * kHalf / kPadded;
    const bool upper = (threadIdx.x & kDistance) != 0;
    if (upper) *index += kHalf;
#pragma unroll
    for (int n = 0; n < kHalf; ++n) {
      const Number other = __shfl_xor_sync(kAllLanes, upper ? part[n] : part[n + kHalf], kDistance);
      part[n] = (upper ? part[n + kHalf] : part[n]) + other;
    }
    FoldHalves<kHalf / 2>(part, index);
  }
}

// N sums over a warp, to sum[0, N) of shared memory: nine shuffles for eight of them, where one by
// one takes forty.
template <int N, typename Number>
__device__ void WarpSums(const Number (&value)[N], Number* sum) {
  constexpr int kPadded = PowerOfTwoFrom(N);
  static_assert(kPadded <= kWarp);
  Number part[kPadded];
#pragma unroll
  for (int n = 0; n < kPadded; ++n) part[n] = n < N ? value[n] : Number{};
  int index = 0;
  FoldHalves<kPadded / 2>(part, &index);
#pragma unroll
  for (int distance = kWarp / kPadded / 2; distance > 0; distance /= 2) {
    part[0] += __shfl_xor_sync(kAllLanes, part[0], distance);
  }
  if (threadIdx.x % (kWarp / kPadded) == 0 && index < N) sum[index] = part[0];
}

// N sums over a block of kThreads. `scratch` is shared memory for N numbers per warp; it can be
// used again after.
template <int kThreads, int N, typename Number>
__device__ void BlockSum(Number (&sum)[N], Number* scratch) {
  constexpr int kWarps = kThreads / kWarp;
  WarpSums(sum, scratch + threadIdx.x / kWarp * N);
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    sum[n] = scratch[n];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sum[n] += scratch[w * N + n];
  }
  __syncthreads();
}

// `scratch` is shared memory for a number per warp.
template <int kThreads>
__device__ float BlockMax(float value, float* scratch) {
  constexpr int kWarps = kThreads / kWarp;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  value = WarpMax(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) value = fmaxf(value, scratch[w]);
  __syncthreads();
  return value;
}

}  // namespace ddl::kernels::cuda

#endif  // DDL_MODEL_KERNELS_CUDA_BLOCK_CUH_
