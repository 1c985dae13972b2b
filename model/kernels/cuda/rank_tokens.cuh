#ifndef DDL_MODEL_KERNELS_CUDA_RANK_TOKENS_CUH_
#define DDL_MODEL_KERNELS_CUDA_RANK_TOKENS_CUH_

// The most likely tokens of a row in order, without sorting its vocabulary; a block owns the row.
//
// RankChunk takes the next kChunk or fewer: a radix select over keys, (weight, id), finds a
// threshold that no more than a chunk's worth pass, and a bitonic sort orders those. Keys are
// unique, so integer atomics in any order lead to one result.
//
// FindMass finds the key at which the mass of tokens from the most likely down reaches a target, by
// the same descent: for distributions so flat that ranking would take a chunk after the other.
// Masses are integers, whose sum has no order, in units of 2^-39 of the largest weight.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {

constexpr int kSampleThreads = 512;
constexpr int kChunk = 1024;  // a power of two
constexpr int kBins = 256;
constexpr int kBinBits = 8;

// What thread 0 decides for all.
struct SampleDecision {
  uint64_t bound;      // ranked already: keys from here up
  uint64_t threshold;  // of the next chunk
  int found;           // keys in the chunk
  int refine;          // the bin that must be looked into; -1: none
  int enough;          // whether the filters need no more
  double mass;         // of all ranked
  uint64_t above;      // the mass of the keys above the bin that FindMass looks into
};

// Shared memory of a block.
struct SampleShared {
  uint64_t* key;  // [kChunk]
  double* sum;    // [kSampleThreads]
  SampleDecision* decision;
  uint64_t* bin_mass;  // [kBins]
  int* bin;            // [kBins]
  float* scratch;      // [2, warps]
};
constexpr int64_t kSampleSharedBytes = kChunk * 8 + kSampleThreads * 8 + sizeof(SampleDecision) +
                                       kBins * 12 + 2 * (kSampleThreads / kWarp) * 4;

__device__ inline SampleShared SampleSharedOf() {
  SampleShared shared;
  shared.key = reinterpret_cast<uint64_t*>(SharedMemory());
  shared.sum = reinterpret_cast<double*>(shared.key + kChunk);
  shared.decision = reinterpret_cast<SampleDecision*>(shared.sum + kSampleThreads);
  shared.bin_mass = reinterpret_cast<uint64_t*>(shared.decision + 1);
  shared.bin = reinterpret_cast<int*>(shared.bin_mass + kBins);
  shared.scratch = reinterpret_cast<float*>(shared.bin + kBins);
  return shared;
}

// Calls body(i, x[i]) for this thread's part of x [n], in order. So many loads are in flight at a
// time, which a compiler cannot have where a body stores.
template <typename Body>
__device__ void ForEachOf(const float* x, int n, Body body) {
  constexpr int kAtOnce = 8;
  for (int begin = threadIdx.x; begin < n; begin += kAtOnce * kSampleThreads) {
    float value[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = begin + k * kSampleThreads;
      value[k] = i < n ? x[i] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = begin + k * kSampleThreads;
      if (i < n) body(i, value[k]);
    }
  }
}

// Ordered as the sampler ranks: larger weights first, ties to the lower id. Never 0.
__device__ inline uint64_t KeyOf(float weight, int id) {
  return static_cast<uint64_t>(FloatBits(weight)) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ inline float WeightOf(uint64_t key) {
  return FloatOfBits(static_cast<uint32_t>(key >> 32));
}
__device__ inline int IdOf(uint64_t key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}

// The bins of a level in a descent to a key. At first a bin is an eighth of an octave of weights,
// down from the largest, 1: likelihoods spread over octaves, so that few keys of a warp count in
// the same bin. Bin 0 has what is below 2^-32, nearly. Then bins are 1/256 of the bin before.
struct KeyBins {
  uint64_t begin = 0;
  uint64_t first = uint64_t{0x2fa00000} << 32;         // of bin 1: 1.0 is in bin 255
  int shift = 52;                                      // from bin 1 on, a bin has 2^shift keys
  uint64_t end = first + (uint64_t{kBins - 1} << 52);  // the first key that no bin has

  __device__ bool Have(uint64_t key) const { return begin <= key && key < end; }
  __device__ int Of(uint64_t key) const {
    return key < first ? 0 : 1 + static_cast<int>((key - first) >> shift);
  }
  __device__ uint64_t BeginOf(int bin) const {
    return bin == 0 ? begin : first + (static_cast<uint64_t>(bin - 1) << shift);
  }
  __device__ KeyBins Within(int bin) const {
    KeyBins bins;
    bins.begin = BeginOf(bin);
    bins.end = BeginOf(bin + 1);
    int bits = shift;  // that tell the bin's keys apart
    while (bins.end - bins.begin > uint64_t{1} << bits) ++bits;
    bins.shift = bits > kBinBits ? bits - kBinBits : 0;
    bins.first = bins.begin + (uint64_t{1} << bins.shift);
    return bins;
  }
};

// Finds a threshold that at least one and at most kChunk of the keys below decision.bound reach,
// and the most that whole bins allow. decision.found is their number, 0 if no key is left.
__device__ inline void FindThreshold(const float* weight, int n, const SampleShared& shared) {
  SampleDecision& decision = *shared.decision;
  const uint64_t bound = decision.bound;
  KeyBins bins;
  for (;;) {
    for (int b = threadIdx.x; b < kBins; b += kSampleThreads) shared.bin[b] = 0;
    __syncthreads();
    ForEachOf(weight, n, [&](int i, float w) {
      const uint64_t key = KeyOf(w, i);
      if (bins.Have(key) && key < bound) atomicAdd(&shared.bin[bins.Of(key)], 1);
    });
    __syncthreads();
    const int b = static_cast<int>(threadIdx.x);
    if (b < kBins) {
      int above = 0;
#pragma unroll 4
      for (int larger = kBins - 1; larger > b; --larger) above += shared.bin[larger];
      const int found = above + shared.bin[b];
      // The one bin with which they become too many; or none, and all are taken.
      if (above <= kChunk && found > kChunk) {
        decision.found = above;
        // No key left is above these bins, so where it is the first, what is in it comes first.
        decision.refine = above == 0 ? b : -1;
        decision.threshold = bins.BeginOf(b + 1);
      } else if (b == 0 && found <= kChunk) {
        decision.found = found;
        decision.refine = -1;
        decision.threshold = bins.begin;
      }
    }
    __syncthreads();
    const int refine = decision.refine;
    __syncthreads();  // all have read it
    if (refine < 0) return;
    bins = bins.Within(refine);
  }
}

// Descending, in place; size is a power of two.
__device__ inline void SortKeys(uint64_t* key, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int i = threadIdx.x; i < size; i += kSampleThreads) {
        const int other = i ^ distance;
        if (other <= i) continue;
        const bool descending = (i & run) == 0;
        const uint64_t a = key[i], b = key[other];
        if (descending ? a < b : a > b) {
          key[i] = b;
          key[other] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The next most likely tokens, into shared.key in order; decision.found of them.
__device__ inline void RankChunk(const float* weight, int n, const SampleShared& shared) {
  SampleDecision& decision = *shared.decision;
  FindThreshold(weight, n, shared);
  const uint64_t bound = decision.bound, threshold = decision.threshold;
  const int found = decision.found;
  int size = 2;
  while (size < found) size *= 2;
  for (int i = threadIdx.x; i < size; i += kSampleThreads) shared.key[i] = 0;
  if (threadIdx.x == 0) shared.bin[0] = 0;
  __syncthreads();
  if (found == 0) return;
  ForEachOf(weight, n, [&](int i, float w) {
    const uint64_t key = KeyOf(w, i);
    if (key >= threshold && key < bound) shared.key[atomicAdd(&shared.bin[0], 1)] = key;
  });
  __syncthreads();
  SortKeys(shared.key, size);
  if (threadIdx.x == 0) decision.bound = threshold;
}

// A weight as an integer mass: of any vocabulary (2^24) they add up to less than 2^64.
__device__ inline uint64_t MassOf(float weight) {
  return static_cast<uint64_t>(Multiply(weight, 549755813888.0f));  // 2^39
}

// The mass of the keys from `bound` up.
__device__ inline uint64_t MassFrom(uint64_t bound, const float* weight, int n,
                                    const SampleShared& shared) {
  uint64_t sum[1] = {};
  ForEachOf(weight, n, [&](int i, float w) {
    if (KeyOf(w, i) >= bound) sum[0] += MassOf(w);
  });
  BlockSum<kSampleThreads>(sum, reinterpret_cast<uint64_t*>(shared.sum));
  return sum[0];
}

// The key at which the mass of the keys from the largest down reaches `target`, which is at least 1
// and at most that of all.
__device__ inline uint64_t FindMass(uint64_t target, const float* weight, int n,
                                    const SampleShared& shared) {
  SampleDecision& decision = *shared.decision;
  KeyBins bins;
  uint64_t above = 0;  // the mass of the keys from bins.end up
  for (;;) {
    for (int b = threadIdx.x; b < kBins; b += kSampleThreads) shared.bin_mass[b] = 0;
    if (threadIdx.x == 0) decision.refine = 0;
    __syncthreads();
    ForEachOf(weight, n, [&](int i, float w) {
      const uint64_t key = KeyOf(w, i);
      if (bins.Have(key)) AtomicAdd(&shared.bin_mass[bins.Of(key)], MassOf(w));
    });
    __syncthreads();
    // The one bin in which the target is reached.
    const int b = static_cast<int>(threadIdx.x);
    if (b < kBins) {
      uint64_t before = above;
#pragma unroll 4
      for (int larger = kBins - 1; larger > b; --larger) before += shared.bin_mass[larger];
      if (before < target && target <= before + shared.bin_mass[b]) {
        decision.above = before;
        decision.refine = b;
      }
    }
    __syncthreads();
    const int reached = decision.refine;
    above = decision.above;
    __syncthreads();  // all have read them
    if (bins.shift == 0) return bins.BeginOf(reached);
    bins = bins.Within(reached);
  }
}

}  // namespace ddl::kernels::cuda

#endif  // DDL_MODEL_KERNELS_CUDA_RANK_TOKENS_CUH_
