#ifndef DDL_MODEL_KERNELS_CPU_BODIES_H_
#define DDL_MODEL_KERNELS_CPU_BODIES_H_

#include "model/kernels/kernels.h"

// One instruction set's bodies of kernels.h, each in its own file; table.cc lists them.

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

// The slot whose tails a sequence of the batch goes on from.
inline int64_t TailSource(const Batch& batch, int64_t sequence) {
  return batch.tail_source != nullptr ? batch.tail_source[sequence] : batch.slot[sequence];
}

void ExpandInputBody(const Executor& executor, int64_t tokens, const ExpandInputArgs& args);
void DeltaStepBody(const Executor& executor, const Batch& batch, const DeltaStepArgs& args);
// What DeltaStepBody leaves to plain loops: more than eight value channels ...
void WideDeltaStep(const Executor& executor, const Batch& batch, const DeltaStepArgs& args);
// ... and args.update_ratio, from X before the rewrite.
void UpdateRatios(const Executor& executor, const Batch& batch, const DeltaStepArgs& args);
void AttentionInputBody(const Executor& executor, const Batch& batch,
                        const AttentionInputArgs& args);
void PagedAttentionBody(const Executor& executor, const Batch& batch,
                        const PagedAttentionArgs& args);
void SwiGluBody(const Executor& executor, int64_t tokens, const SwiGluArgs& args);
void ProductBody(const Executor& executor, int64_t rows, const ProductArgs& args);
void QuantizedProductBody(const Executor& executor, int64_t rows, const QuantizedProductArgs& args);
Largest FindLargestBody(const float* values, int64_t n);
float SoftmaxWeightsBody(const float* logits, int64_t n, float max, float inverse_temperature,
                         float* weights);

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE

#endif  // DDL_MODEL_KERNELS_CPU_BODIES_H_
