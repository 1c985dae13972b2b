#ifndef DDL_MODEL_KERNELS_CPU_VECTOR_H_
#define DDL_MODEL_KERNELS_CPU_VECTOR_H_

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/kernels/cpu/cpu_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// What the CPU bodies are made of: elements, vectors of sixteen floats, exp, sums, scratch memory,
// threads.
//
// Included by sources that are compiled several times, with DDL_KERNELS_NAMESPACE naming the
// instruction set that the compiler flags allow. For that reason nothing outside that namespace
// may be instantiated here or there (no std:: templates): the linker would keep one copy for all,
// possibly one that the processor cannot run.

// A loop over registers is no loop: unrolled, its array stays in them.
#define DDL_UNROLL _Pragma("GCC unroll 16")
#define DDL_INLINE inline __attribute__((always_inline))

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

// ---- Elements

struct BFloat16 {
  uint16_t bits;
};

DDL_INLINE float Load(const float* p) { return *p; }
DDL_INLINE float Load(const BFloat16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

DDL_INLINE void Store(float* p, float value) { *p = value; }
DDL_INLINE void Store(BFloat16* p, float value) {  // round to nearest even
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// ---- Vectors of sixteen floats, whatever the width of the registers: sums have one arrangement
// everywhere.

constexpr int64_t kLanes = 16;

#if defined(__AVX512F__)
constexpr int kPartLanes = 16;
#elif defined(__AVX__)
constexpr int kPartLanes = 8;
#else
constexpr int kPartLanes = 4;
#endif
constexpr int kParts = static_cast<int>(kLanes) / kPartLanes;

typedef float PartFloats __attribute__((vector_size(4 * kPartLanes)));
typedef int32_t PartInts __attribute__((vector_size(4 * kPartLanes)));
typedef uint32_t PartWords __attribute__((vector_size(4 * kPartLanes)));
typedef uint16_t PartHalves __attribute__((vector_size(2 * kPartLanes)));
typedef uint8_t PartBytes __attribute__((vector_size(kPartLanes)));

struct Floats {
  PartFloats part[kParts];
};

DDL_INLINE Floats Broadcast(float value) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) result.part[i] = PartFloats{} + value;
  return result;
}
DDL_INLINE Floats operator+(const Floats& a, const Floats& b) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) result.part[i] = a.part[i] + b.part[i];
  return result;
}
DDL_INLINE Floats operator*(const Floats& a, const Floats& b) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) result.part[i] = a.part[i] * b.part[i];
  return result;
}
DDL_INLINE Floats operator*(const Floats& a, float b) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) result.part[i] = a.part[i] * b;
  return result;
}

// a * b + c in one rounding wherever the instruction set has it: where the same sum is made by
// several pieces of code, the compiler must not choose for each of them.
DDL_INLINE PartFloats MulAdd(const PartFloats& a, const PartFloats& b, const PartFloats& c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
DDL_INLINE Floats MulAdd(const Floats& a, const Floats& b, const Floats& c) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    result.part[i] = MulAdd(a.part[i], b.part[i], c.part[i]);
  }
  return result;
}

DDL_INLINE Floats LoadVector(const float* p) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    memcpy(&result.part[i], p + i * kPartLanes, sizeof(PartFloats));
  }
  return result;
}
// GCC converts the long way round, by quarters.
DDL_INLINE PartWords Widen(const PartHalves& halves) {
#if defined(__AVX512F__)
  return reinterpret_cast<PartWords>(
      _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(halves)));
#else
  return __builtin_convertvector(halves, PartWords);
#endif
}

DDL_INLINE Floats LoadVector(const BFloat16* p) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    PartHalves halves;
    memcpy(&halves, p + i * kPartLanes, sizeof(halves));
    result.part[i] = reinterpret_cast<PartFloats>(Widen(halves) << 16);
  }
  return result;
}

DDL_INLINE void StoreVector(float* p, const Floats& value) {
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    memcpy(p + i * kPartLanes, &value.part[i], sizeof(PartFloats));
  }
}
DDL_INLINE void StoreVector(BFloat16* p, const Floats& value) {
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
#if defined(__AVX512BF16__)
    const __m256bh halves = _mm512_cvtneps_pbh(value.part[i]);
#else
    const PartWords bits = reinterpret_cast<PartWords>(value.part[i]);
    const PartWords rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const PartWords is_nan = reinterpret_cast<PartWords>(value.part[i] != value.part[i]);
    const PartWords words = (rounded & ~is_nan) | (is_nan & 0x7fc0u);
#if defined(__AVX512F__)
    const __m256i halves = _mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(words));
#else
    const PartHalves halves = __builtin_convertvector(words, PartHalves);
#endif
#endif
    memcpy(p + i * kPartLanes, &halves, sizeof(halves));
  }
}

// The sum of the lanes, by halves: lane i with lane i + 8, then i + 4 ...
DDL_INLINE float Total(const Floats& value) {
#if defined(__AVX512F__)
  const PartFloats& a = value.part[0];
  const PartFloats b =
      a + __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  const PartFloats c =
      b + __builtin_shufflevector(b, b, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3);
  return (c[0] + c[2]) + (c[1] + c[3]);
#else
  float sum[kLanes];
  memcpy(sum, &value, sizeof(sum));
  DDL_UNROLL for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    DDL_UNROLL for (int64_t i = 0; i < width; ++i) sum[i] += sum[i + width];
  }
  return sum[0];
#endif
}

// The sums of neighbouring lanes, those of `a` first.
DDL_INLINE PartFloats PairSums(const PartFloats& a, const PartFloats& b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// Sums of groups of kSize neighbouring lanes: kSize vectors -> the sums of sixteen groups.
template <int kSize>
DDL_INLINE Floats GroupSums(const Floats (&values)[kSize]) {
  if constexpr (kSize == 1) {
    return values[0];
  } else {
    Floats halves[kSize / 2];
    DDL_UNROLL for (int i = 0; i < kSize / 2; ++i) {
      DDL_UNROLL for (int part = 0; part < kParts; ++part) {
        const int from = 2 * part;  // of the two vectors' parts, one after the other
        halves[i].part[part] =
            PairSums(values[2 * i + from / kParts].part[from % kParts],
                     values[2 * i + (from + 1) / kParts].part[(from + 1) % kParts]);
      }
    }
    return GroupSums<kSize / 2>(halves);
  }
}

// ---- Scalar functions, written so that loops over them vectorise

// exp(x) to about 1e-7 relative, by exp(x) = 2^n exp(r), |r| <= ln(2)/2.
DDL_INLINE float Exp(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = x * 1.44269504088896341f + shifter;
  const float n = shifted - shifter;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;  // ln(2) in two parts, so that r keeps its bits
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  const int32_t exponent = (bits - 0x4b400000 + 127) << 23;
  float scale;
  memcpy(&scale, &exponent, sizeof(scale));
  return p * scale;
}

// The same for vectors.
DDL_INLINE PartFloats Exp(PartFloats x) {
  const PartFloats most = PartFloats{} + 88.0f, least = PartFloats{} - 87.0f;
  x = x > most ? most : x;
  x = x < least ? least : x;
  const float shifter = 12582912.0f;
  const PartFloats shifted = x * 1.44269504088896341f + shifter;
  const PartFloats n = shifted - shifter;
  PartFloats r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  PartFloats p = PartFloats{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const PartInts exponent = (reinterpret_cast<PartInts>(shifted) - 0x4b400000 + 127) << 23;
  return p * reinterpret_cast<PartFloats>(exponent);
}

DDL_INLINE float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }
DDL_INLINE float Silu(float x) { return x * Sigmoid(x); }
DDL_INLINE Floats Silu(const Floats& x) {
  Floats result;
  DDL_UNROLL for (int i = 0; i < kParts; ++i) {
    result.part[i] = x.part[i] / (1.0f + Exp(-x.part[i]));
  }
  return result;
}

// ---- Sums, in sixteen partial sums

DDL_INLINE float Dot(const float* a, const float* b, int64_t n) {
  Floats sums = Broadcast(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums = sums + LoadVector(a + i) * LoadVector(b + i);
  float lanes[kLanes];
  StoreVector(lanes, sums);
  for (int64_t l = 0; i + l < n; ++l) lanes[l] += a[i + l] * b[i + l];
  return Total(LoadVector(lanes));
}

DDL_INLINE float SumOfSquares(const float* a, int64_t n) { return Dot(a, a, n); }

// z <- weight * z / sqrt(mean(z^2) + eps), of one head.
inline void NormHead(const float* weight, float eps, int64_t head_dim, float* z) {
  const float scale = 1.0f / sqrtf(SumOfSquares(z, head_dim) / static_cast<float>(head_dim) + eps);
  int64_t n = 0;
  for (; n + kLanes <= head_dim; n += kLanes) {
    StoreVector(z + n, LoadVector(weight + n) * (LoadVector(z + n) * scale));
  }
  for (; n < head_dim; ++n) z[n] = weight[n] * (z[n] * scale);
}

// A row of elements as floats, and back.
template <typename T>
DDL_INLINE void LoadRow(const T* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) StoreVector(to + i, LoadVector(from + i));
  for (; i < n; ++i) to[i] = Load(from + i);
}
template <typename T>
DDL_INLINE void StoreRow(const float* from, int64_t n, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) StoreVector(to + i, LoadVector(from + i));
  for (; i < n; ++i) Store(to + i, from[i]);
}

// ---- Scratch and threads

// Memory for a call, aligned to a vector. One allocation; Take hands out its parts.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : data_(static_cast<unsigned char*>(aligned_alloc(64, Padded(bytes) + 64))),
        size_(Padded(bytes)) {
    if (data_ == nullptr) abort();
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // What `count` elements take of it.
  template <typename T>
  static constexpr int64_t Bytes(int64_t count) {
    return Padded(count * static_cast<int64_t>(sizeof(T)));
  }
  template <typename T>
  T* Take(int64_t count) {
    unsigned char* part = data_ + taken_;
    taken_ += Bytes<T>(count);
    if (taken_ > size_) abort();
    return reinterpret_cast<T*>(part);
  }

 private:
  static constexpr int64_t Padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  unsigned char* data_;
  int64_t size_;
  int64_t taken_ = 0;
};

template <typename Body>  // void(int64_t begin, int64_t end)
void ParallelFor(const Executor& executor, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  if (executor.parallel_for == nullptr || n <= grain) {
    body(0, n);
    return;
  }
  executor.parallel_for(
      executor.threads, n, grain,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<Body*>(&body));
}

// Rows handed to a thread at once, so that waking it pays.
inline int64_t RowGrain(int64_t work_per_row) {
  constexpr int64_t kMinimumWork = 16384;
  const int64_t rows = kMinimumWork / (work_per_row > 0 ? work_per_row : 1);
  return rows > 1 ? rows : 1;
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE

#endif  // DDL_MODEL_KERNELS_CPU_VECTOR_H_
