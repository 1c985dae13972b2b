#ifndef DDL_MODEL_KERNELS_CUDA_RANK_TOKENS_CUH_
#define DDL_MODEL_KERNELS_CUDA_RANK_TOKENS_CUH_

// The most likely tokens of a row in order, without sorting its vocabulary; a block owns the row.
//
// RankChunk takes the next kChunk or fewer: a radix select over (weight, id) finds a threshold that
// no more than a chunk's worth pass, and a bitonic sort orders those. Keys are unique, so integer
// atomics in any order lead to one result.
//
// FindMass finds the key at which the mass of tokens from the most likely down reaches a target, by
// the same descent: for distributions so flat that ranking would take a chunk after the other.
// Masses are integers, whose sum has no order, in units of 2^-39 of the largest weight.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {

constexpr int kSampleThreads = 512;
constexpr int kChunk = 1024;  // a power of two
constexpr int kBins = 256;
constexpr int kKeyBytes = 8;

// What thread 0 decides for all.
struct SampleDecision {
  uint64_t bound;      // ranked already: keys from here up
  uint64_t threshold;  // of the next chunk
  int found;           // keys in the chunk
  int refine;          // whether a bin must be looked into
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

// Finds a threshold that at least one and at most kChunk of the keys below decision.bound reach,
// and the most that whole bins allow. decision.found is their number, 0 if no key is left.
__device__ inline void FindThreshold(const float* weight, int n, const SampleShared& shared) {
  SampleDecision& decision = *shared.decision;
  uint64_t prefix = 0;
  for (int level = kKeyBytes - 1; level >= 0; --level) {
    const int shift = 8 * level;
    for (int b = threadIdx.x; b < kBins; b += kSampleThreads) shared.bin[b] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kSampleThreads) {
      const uint64_t key = KeyOf(weight[i], i);
      const bool inside = level == kKeyBytes - 1 || key >> (shift + 8) == prefix >> (shift + 8);
      if (inside && key < decision.bound) {
        atomicAdd(&shared.bin[key >> shift & (kBins - 1)], 1);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      decision.found = 0;
      decision.refine = 0;
#pragma unroll 1
      for (int b = kBins - 1; b >= 0; --b) {
        if (shared.bin[b] == 0) continue;
        if (decision.found + shared.bin[b] > kChunk) {
          decision.refine = decision.found == 0;
          // No key left is above this bin, so what is found in it comes first.
          if (decision.refine) decision.threshold = prefix | static_cast<uint64_t>(b) << shift;
          break;
        }
        decision.found += shared.bin[b];
        decision.threshold = prefix | static_cast<uint64_t>(b) << shift;
      }
    }
    __syncthreads();
    prefix = decision.threshold;
    const bool refine = decision.refine != 0;
    __syncthreads();  // all have read it
    if (!refine) return;
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
  for (int i = threadIdx.x; i < n; i += kSampleThreads) {
    const uint64_t key = KeyOf(weight[i], i);
    if (key >= threshold && key < bound) shared.key[atomicAdd(&shared.bin[0], 1)] = key;
  }
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
  for (int i = threadIdx.x; i < n; i += kSampleThreads) {
    if (KeyOf(weight[i], i) >= bound) sum[0] += MassOf(weight[i]);
  }
  BlockSum<kSampleThreads>(sum, reinterpret_cast<uint64_t*>(shared.sum));
  return sum[0];
}

// The key at which the mass of the keys from the largest down reaches `target`, which is at least 1
// and at most that of all.
__device__ inline uint64_t FindMass(uint64_t target, const float* weight, int n,
                                    const SampleShared& shared) {
  SampleDecision& decision = *shared.decision;
  uint64_t prefix = 0;
  uint64_t above = 0;  // the mass of the keys above those with this prefix
  for (int level = kKeyBytes - 1; level >= 0; --level) {
    const int shift = 8 * level;
    for (int b = threadIdx.x; b < kBins; b += kSampleThreads) shared.bin_mass[b] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kSampleThreads) {
      const uint64_t key = KeyOf(weight[i], i);
      if (level == kKeyBytes - 1 || key >> (shift + 8) == prefix >> (shift + 8)) {
        AtomicAdd(&shared.bin_mass[key >> shift & (kBins - 1)], MassOf(weight[i]));
      }
    }
    __syncthreads();
    // The one bin in which the target is reached.
    const int b = static_cast<int>(threadIdx.x);
    if (b < kBins) {
      uint64_t before = above;
#pragma unroll 4
      for (int larger = kBins - 1; larger > b; --larger) before += shared.bin_mass[larger];
      if (before < target && target <= before + shared.bin_mass[b]) {
        decision.above = before;
        decision.threshold = prefix | static_cast<uint64_t>(b) << shift;
      }
    }
    __syncthreads();
    prefix = decision.threshold;
    above = decision.above;
    __syncthreads();  // all have read them
  }
  return prefix;
}

}  // namespace ddl::kernels::cuda

#endif  // DDL_MODEL_KERNELS_CUDA_RANK_TOKENS_CUH_
