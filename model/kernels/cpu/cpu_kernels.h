#ifndef DDL_MODEL_KERNELS_CPU_CPU_KERNELS_H_
#define DDL_MODEL_KERNELS_CPU_CPU_KERNELS_H_

#include "model/kernels/kernels.h"

// The CPU bodies. The sources in cpu/ are compiled once per instruction set, each time into its own
// namespace; dispatch.cc picks one when the process starts.

namespace ddl::kernels {

struct CpuKernels {
  const char* instruction_set;
  decltype(&ExpandInput) expand_input;
  decltype(&DeltaStep) delta_step;
  decltype(&AttentionInput) attention_input;
  decltype(&PagedAttention) paged_attention;
  decltype(&SwiGlu) swiglu;
  decltype(&Product) product;
  decltype(&QuantizedProduct) quantized_product;
  decltype(&FindLargest) find_largest;
  decltype(&SoftmaxWeights) softmax_weights;
};

namespace portable {
extern const CpuKernels kCpuKernels;
}
namespace avx2 {
extern const CpuKernels kCpuKernels;
}
namespace avx512 {
extern const CpuKernels kCpuKernels;
}
namespace avx512_bf16 {
extern const CpuKernels kCpuKernels;
}

// The kernels of the best instruction set that this processor has.
const CpuKernels& BestCpuKernels();

}  // namespace ddl::kernels

#endif  // DDL_MODEL_KERNELS_CPU_CPU_KERNELS_H_
