#ifndef DDL_MODEL_KERNELS_CUDA_DEVICE_CUH_
#define DDL_MODEL_KERNELS_CUDA_DEVICE_CUH_

// The host's twin of model/kernels/cuda/device.cuh: with this folder before the project's root on
// the include path, .cu files are C++, and a launch runs the kernel through block.h.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/check.h"
#include "model/kernels/cuda/cuda_kernels.h"
#include "model/kernels/philox.h"
#include "tests/model/kernels/cuda/block.h"
#include "tests/model/kernels/cuda/host_memory.h"

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(...)

#define threadIdx ::ddl::kernels::cuda_host::thread_index
#define blockIdx ::ddl::kernels::cuda_host::block_index
#define blockDim ::ddl::kernels::cuda_host::block_size
#define gridDim ::ddl::kernels::cuda_host::grid_size

inline void __syncthreads() { ddl::kernels::cuda_host::BlockBarrier(); }
inline void __threadfence() {}  // one block runs after the other
inline void __syncwarp() { ddl::kernels::cuda_host::WarpBarrier(); }

template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lane_mask) {
  DDL_CHECK(mask == 0xffffffffu, "only whole warps shuffle here");
  uint64_t bits = 0;
  static_assert(sizeof(value) <= sizeof(bits));
  memcpy(&bits, &value, sizeof(value));
  bits = ddl::kernels::cuda_host::WarpExchange(bits,
                                               threadIdx.x % 32 ^ static_cast<unsigned>(lane_mask));
  memcpy(&value, &bits, sizeof(value));
  return value;
}

template <typename Value>
Value __shfl_sync(unsigned mask, Value value, int source_lane) {
  DDL_CHECK(mask == 0xffffffffu, "only whole warps shuffle here");
  uint64_t bits = 0;
  static_assert(sizeof(value) <= sizeof(bits));
  memcpy(&bits, &value, sizeof(value));
  bits = ddl::kernels::cuda_host::WarpExchange(bits, static_cast<unsigned>(source_lane));
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Fibers take turns only at barriers, so a plain addition is atomic among them.
template <typename Integer>
Integer atomicAdd(Integer* p, Integer value) {
  const Integer before = *p;
  *p += value;
  return before;
}

namespace ddl::kernels::cuda {

struct BFloat16 {
  uint16_t bits;
};

inline float FloatOfBits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t FloatBits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float ToFloat(float value) { return value; }
inline float ToFloat(BFloat16 value) {
  return FloatOfBits(static_cast<uint32_t>(value.bits) << 16);
}

template <typename T>
T FromFloat(float value);
template <>
inline float FromFloat<float>(float value) {
  return value;
}
template <>
inline BFloat16 FromFloat<BFloat16>(float value) {
  const uint32_t bits = FloatBits(value);
  if (value != value) return {0x7fff};  // the device's NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline void RoundPair(float a, float b, BFloat16* to) {
  to[0] = FromFloat<BFloat16>(a);
  to[1] = FromFloat<BFloat16>(b);
}
inline void RoundPair(float a, float b, float* to) {
  to[0] = a;
  to[1] = b;
}

inline float InverseSqrt(float value) { return 1.0f / sqrtf(value); }

// Built without contraction, so that plain operators round once each.
inline float MultiplyAdd(float a, float b, float c) { return fmaf(a, b, c); }
inline float Add(float a, float b) { return a + b; }
inline float Multiply(float a, float b) { return a * b; }
inline double Add(double a, double b) { return a + b; }

template <typename Word>
Word LoadWord(const void* p) {
  DDL_CHECK(reinterpret_cast<uintptr_t>(p) % sizeof(Word) == 0, "a load that is not aligned");
  Word word;
  memcpy(&word, p, sizeof(word));
  return word;
}
template <typename Word>
Word LoadConstantWord(const void* p) {
  return LoadWord<Word>(p);
}
template <typename Word>
void StoreWord(void* p, Word word) {
  DDL_CHECK(reinterpret_cast<uintptr_t>(p) % sizeof(Word) == 0, "a store that is not aligned");
  memcpy(p, &word, sizeof(word));
}

inline void AtomicAdd(uint64_t* p, uint64_t value) { *p += value; }

inline unsigned char* SharedMemory() { return cuda_host::SharedMemory(); }

// One kernel runs after the other here; that every thread comes by is checked (block.h).
inline void BeginKernel() { cuda_host::ThreadBegins(); }

inline int64_t BlockIndexAnew() { return blockIdx.x; }

struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
};

constexpr Error kInvalidArgument = 1;  // cudaErrorInvalidValue

// As on the device, the kernel gets copies of its arguments.
template <typename... Parameters, typename... Arguments>
Error Launch(void (*kernel)(Parameters...), Grid grid, int threads, int64_t shared_bytes, Stream,
             const Arguments&... arguments) {
  const auto blocks = static_cast<size_t>(grid.x);
  (cuda_host::CheckArgument(arguments, blocks), ...);
  const cuda_host::DeviceMemoryAccess access;
  cuda_host::RunGrid(
      {static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)},
      static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), [&] {
        kernel(arguments...);
        cuda_host::CheckBegun();
      });
  return kSuccess;
}

}  // namespace ddl::kernels::cuda

#endif  // DDL_MODEL_KERNELS_CUDA_DEVICE_CUH_
