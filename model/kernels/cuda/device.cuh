#ifndef DDL_MODEL_KERNELS_CUDA_DEVICE_CUH_
#define DDL_MODEL_KERNELS_CUDA_DEVICE_CUH_

// All that a kernel takes from CUDA beyond its language: elements, words of memory, launches.
//
// This header has a twin for the host, tests/model/kernels/cuda/host/model/kernels/cuda/device.cuh,
// which the tests put before it on the include path: there the same .cu files are plain C++, and
// their kernels run on the CPU. Whatever only nvcc understands belongs here and nowhere else. Of
// CUDA's own names kernels use those that the twin has: threadIdx, blockIdx, blockDim, gridDim,
// __syncthreads, __syncwarp, __threadfence, __shfl_sync, __shfl_xor_sync, atomicAdd on integers.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "model/kernels/cuda/cuda_kernels.h"

// Philox is one piece of plain C++ for both sides; nothing in it but this word is in the way.
#define inline __host__ __device__ inline
#include "model/kernels/philox.h"
#undef inline

namespace ddl::kernels::cuda {

// ---- Elements

struct BFloat16 {
  uint16_t bits;
};

__device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

template <typename T>
__device__ T FromFloat(float value);
template <>
__device__ inline float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ inline BFloat16 FromFloat<BFloat16>(float value) {  // rounds to nearest even
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}

// Two at once, in one instruction.
__device__ inline void RoundPair(float a, float b, BFloat16* to) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  to[0] = {__bfloat16_as_ushort(pair.x)};
  to[1] = {__bfloat16_as_ushort(pair.y)};
}
__device__ inline void RoundPair(float a, float b, float* to) {
  to[0] = a;
  to[1] = b;
}

// Within two units in the last place.
__device__ inline float InverseSqrt(float value) { return rsqrtf(value); }

// One rounding each, and never contracted or split: sums that must come out the same whichever
// kernel takes them are written with these.
__device__ inline float MultiplyAdd(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline float Add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float Multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double Add(double a, double b) { return __dadd_rn(a, b); }

__device__ inline uint32_t FloatBits(float value) { return __float_as_uint(value); }
__device__ inline float FloatOfBits(uint32_t bits) { return __uint_as_float(bits); }

// ---- Memory

// 1, 2, 4, 8 or 16 bytes in one access; `p` must be aligned to them.
template <typename Word>
__device__ Word LoadWord(const void* p) {
  return *static_cast<const Word*>(p);
}
// Of what no kernel of the launch writes: may be moved before stores to other memory.
template <typename Word>
__device__ Word LoadConstantWord(const void* p) {
  if constexpr (sizeof(Word) == 16) {
    const uint4 words = __ldg(static_cast<const uint4*>(p));
    Word word;
    memcpy(&word, &words, sizeof(word));
    return word;
  } else if constexpr (sizeof(Word) == 8) {
    return static_cast<Word>(__ldg(static_cast<const unsigned long long*>(p)));
  } else {
    return __ldg(static_cast<const Word*>(p));
  }
}
template <typename Word>
__device__ void StoreWord(void* p, Word word) {
  *static_cast<Word*>(p) = word;
}

__device__ inline void AtomicAdd(uint64_t* p, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(value));
}

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ inline unsigned char* SharedMemory() {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  return shared_memory;
}

// ---- Launches

// The first statement of every kernel, by all of its threads: nothing of memory is read or written
// before it. From sm_90 on a kernel is put on the device while the one before it in the stream
// still runs, and waits here until that has ended; then it lets the next one be put there.
__device__ inline void BeginKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether the kernel, as compiled for this device, waits in BeginKernel.
template <typename Kernel>
bool WaitsInBeginKernel(Kernel kernel) {
  cudaFuncAttributes attributes;
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) == cudaSuccess &&
         major >= 9 && attributes.ptxVersion >= 90;
}

// blockIdx.x, read anew: what follows from it need not have been kept in registers until here.
__device__ inline int64_t BlockIndexAnew() {
  unsigned index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
};

constexpr Error kInvalidArgument = cudaErrorInvalidValue;

template <typename... Parameters, typename... Arguments>
Error Launch(void (*kernel)(Parameters...), Grid grid, int threads, int64_t shared_bytes,
             Stream stream, const Arguments&... arguments) {
  constexpr int64_t kAlwaysAllowed = 48 * 1024;
  if (shared_bytes > kAlwaysAllowed) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  // All kernels are compiled for the same devices.
  static const bool waits = WaitsInBeginKernel(kernel);
  config.numAttrs = waits ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace ddl::kernels::cuda

#endif  // DDL_MODEL_KERNELS_CUDA_DEVICE_CUH_
