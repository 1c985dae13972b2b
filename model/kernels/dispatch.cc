<<<<<<< HEAD
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/kernels/cpu/cpu_kernels.h"
#include "model/kernels/kernels.h"

namespace ddl::kernels {

const CpuKernels& BestCpuKernels() {
#if defined(__x86_64__)
  static const CpuKernels& best = [&]() -> const CpuKernels& {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")
                 ? avx512_bf16::kCpuKernels
                 : avx512::kCpuKernels;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kCpuKernels;
    return portable::kCpuKernels;
  }();
  return best;
#else
  return portable::kCpuKernels;
#endif
}

void ExpandInput(const Executor& executor, int64_t tokens, const ExpandInputArgs& args) {
  if (executor.device != nullptr) return executor.device->ExpandInput(tokens, args);
  BestCpuKernels().expand_input(executor, tokens, args);
}

void DeltaStep(const Executor& executor, const Batch& batch, const DeltaStepArgs& args) {
  if (executor.device != nullptr) return executor.device->DeltaStep(batch, args);
  BestCpuKernels().delta_step(executor, batch, args);
}

void AttentionInput(const Executor& executor, const Batch& batch, const AttentionInputArgs& args) {
  if (executor.device != nullptr) return executor.device->AttentionInput(batch, args);
  BestCpuKernels().attention_input(executor, batch, args);
}

void PagedAttention(const Executor& executor, const Batch& batch, const PagedAttentionArgs& args) {
  if (executor.device != nullptr) return executor.device->PagedAttention(batch, args);
  BestCpuKernels().paged_attention(executor, batch, args);
}

void SwiGlu(const Executor& executor, int64_t tokens, const SwiGluArgs& args) {
  if (executor.device != nullptr) return executor.device->SwiGlu(tokens, args);
  BestCpuKernels().swiglu(executor, tokens, args);
}

void PackWeight(const void* weight, int64_t n, int64_t k, void* packed) {
  const auto* from = static_cast<const uint16_t*>(weight);
  auto* to = static_cast<uint16_t*>(packed);
  for (int64_t panel = 0; panel < n; panel += kProductPanel) {
    for (int64_t i = 0; i < k; i += 2) {
      for (int64_t row = panel; row < panel + kProductPanel; ++row) {
        *to++ = row < n ? from[row * k + i] : 0;
        *to++ = row < n && i + 1 < k ? from[row * k + i + 1] : 0;
      }
    }
  }
}

void Product(const Executor& executor, int64_t rows, const ProductArgs& args) {
  BestCpuKernels().product(executor, rows, args);
}

void QuantizeWeight(const void* weight, int64_t n, int64_t k, int8_t* packed, float* scales,
                    int32_t* sums) {
  const auto value = [&](int64_t row, int64_t column) {
    const uint32_t bits =
        static_cast<uint32_t>(static_cast<const uint16_t*>(weight)[row * k + column]) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
  };
  const int64_t padded_k = (k + 3) / 4 * 4;
  for (int64_t panel = 0; panel < n; panel += kProductPanel) {
    for (int64_t row = panel; row < panel + kProductPanel; ++row) {
      float largest = 0.0f;
      for (int64_t i = 0; i < k && row < n; ++i)
        largest = std::max(largest, std::abs(value(row, i)));
      scales[row] = largest / 127.0f;
      sums[row] = 0;
      for (int64_t i = 0; i < padded_k; ++i) {
        const bool is_there = row < n && i < k && largest > 0.0f;
        const auto q =
            static_cast<int8_t>(is_there ? std::lround(value(row, i) / largest * 127.0f) : 0);
        packed[panel * padded_k + (i / 4 * kProductPanel + row - panel) * 4 + i % 4] = q;
        sums[row] += q;
      }
    }
  }
}

void QuantizedProduct(const Executor& executor, int64_t rows, const QuantizedProductArgs& args) {
  BestCpuKernels().quantized_product(executor, rows, args);
}

Largest FindLargest(const float* values, int64_t n) {
  return BestCpuKernels().find_largest(values, n);
}

float SoftmaxWeights(const float* logits, int64_t n, float max, float inverse_temperature,
                     float* weights) {
  return BestCpuKernels().softmax_weights(logits, n, max, inverse_temperature, weights);
=======
#include <cstdlib>

#include "model/kernels/cpu/cpu_kernels.h"

namespace ddl::kernels {

// In each instruction set's namespace: implementation.h. New objects, as raw pointers, since no
// template of the standard library may be instantiated where its flags are in force.
namespace portable {
const CpuKernels* New(const Executor& executor);
const CpuKernels* NewWithEmulatedTiles(const Executor& executor);
}  // namespace portable
#if defined(__x86_64__)
namespace avx2 {
const CpuKernels* New(const Executor& executor);
const CpuKernels* NewWithEmulatedTiles(const Executor& executor);
}  // namespace avx2
namespace avx512 {
const CpuKernels* New(const Executor& executor);
const CpuKernels* NewWithEmulatedTiles(const Executor& executor);
}  // namespace avx512
namespace avx512_bf16 {
const CpuKernels* New(const Executor& executor);
const CpuKernels* NewWithEmulatedTiles(const Executor& executor);
const CpuKernels* NewWithTiles(const Executor& executor);
}  // namespace avx512_bf16
#endif

Kernels::~Kernels() = default;
CpuKernels::~CpuKernels() = default;

namespace {

const CpuKernels* New(InstructionSet set, const Executor& executor) {
#if defined(__x86_64__)
  switch (set) {
    case InstructionSet::kAmx:
      return avx512_bf16::NewWithTiles(executor);
    case InstructionSet::kAvx512Bf16:
      return avx512_bf16::New(executor);
    case InstructionSet::kAvx512:
      return avx512::New(executor);
    case InstructionSet::kAvx2:
      return avx2::New(executor);
    case InstructionSet::kPortable:
      return portable::New(executor);
    case InstructionSet::kAmxEmulated:
      break;
  }
  // What stands beside the tiles is as fast as the processor allows.
  switch (BestInstructionSet()) {
    case InstructionSet::kAmx:
    case InstructionSet::kAvx512Bf16:
      return avx512_bf16::NewWithEmulatedTiles(executor);
    case InstructionSet::kAvx512:
      return avx512::NewWithEmulatedTiles(executor);
    case InstructionSet::kAvx2:
      return avx2::NewWithEmulatedTiles(executor);
    case InstructionSet::kPortable:
    case InstructionSet::kAmxEmulated:
      break;
  }
  return portable::NewWithEmulatedTiles(executor);
#else
  return set == InstructionSet::kAmxEmulated ? portable::NewWithEmulatedTiles(executor)
                                             : portable::New(executor);
#endif
}

}  // namespace

std::unique_ptr<const CpuKernels> MakeCpuKernels(InstructionSet set, const Executor& executor) {
  if (!WhyUnsupported(set).empty()) std::abort();
  return std::unique_ptr<const CpuKernels>(New(set, executor));
>>>>>>> eb01409 (WIP own products)
}

}  // namespace ddl::kernels
