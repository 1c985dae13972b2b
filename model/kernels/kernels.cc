#include "model/kernels/kernels.h"

#include "model/kernels/kernels_cpu.h"

namespace ddl::kernels {

const CpuKernels& BestCpuKernels() {
#if defined(__x86_64__)
  static const CpuKernels& best = [&]() -> const CpuKernels& {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      return __builtin_cpu_supports("avx512bf16") ? avx512_bf16::kCpuKernels : avx512::kCpuKernels;
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

float SoftmaxWeights(const float* logits, int64_t n, float max, float inverse_temperature,
                     float* weights) {
  return BestCpuKernels().softmax_weights(logits, n, max, inverse_temperature, weights);
}

}  // namespace ddl::kernels
