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

float SoftmaxWeights(const float* logits, int64_t n, float max, float inverse_temperature,
                     float* weights) {
  return BestCpuKernels().softmax_weights(logits, n, max, inverse_temperature, weights);
}

}  // namespace ddl::kernels
