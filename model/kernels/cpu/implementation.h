#ifndef DDL_MODEL_KERNELS_CPU_IMPLEMENTATION_H_
#define DDL_MODEL_KERNELS_CPU_IMPLEMENTATION_H_

#include "model/kernels/cpu/cpu_kernels.h"

// One instruction set's kernels, each in a source of its own. DDL_KERNELS_NAMESPACE names the set.

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

class Implementation : public CpuKernels {
 public:
  explicit Implementation(const Executor& executor) : executor_(executor) {}

  InstructionSet instruction_set() const override;

#define DDL_DECLARE_KERNEL(Op) void Op(const Batch& batch, const Op##Args& args) const override;
  DDL_FOR_EACH_KERNEL(DDL_DECLARE_KERNEL)
#undef DDL_DECLARE_KERNEL

  int64_t PackedBytes(WeightType type, int64_t n, int64_t k) const override;
  void Pack(const WeightRows* parts, int64_t count, const PackedWeight& weight) const override;
  void MatMul(int64_t rows, const MatMulArgs& args) const override;
  Largest FindLargest(const float* values, int64_t n) const override;
  float SoftmaxWeights(const float* logits, int64_t n, float max, float inverse_temperature,
                       float* weights) const override;

 protected:
  const Executor& executor() const { return executor_; }

 private:
  // What DeltaStep leaves to plain loops: more than eight value channels ...
  void WideDeltaStep(const Batch& batch, const DeltaStepArgs& args) const;
  // ... and args.update_ratio, from X before the rewrite.
  void UpdateRatios(const Batch& batch, const DeltaStepArgs& args) const;

  const Executor executor_;
};

// The slot whose tails a sequence of the batch goes on from.
inline int64_t TailSource(const Batch& batch, int64_t sequence) {
  return batch.tail_source != nullptr ? batch.tail_source[sequence] : batch.slot[sequence];
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE

#endif  // DDL_MODEL_KERNELS_CPU_IMPLEMENTATION_H_
