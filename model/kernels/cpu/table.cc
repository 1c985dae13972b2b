#include "model/kernels/cpu/bodies.h"
#include "model/kernels/cpu/cpu_kernels.h"

#define DDL_STRINGIFY_VALUE(name) #name
#define DDL_STRINGIFY(name) DDL_STRINGIFY_VALUE(name)

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

const CpuKernels kCpuKernels = {DDL_STRINGIFY(DDL_KERNELS_NAMESPACE),
                                ExpandInputBody,
                                DeltaStepBody,
                                AttentionInputBody,
                                PagedAttentionBody,
                                SwiGluBody,
                                ProductBody,
                                QuantizedProductBody,
                                FindLargestBody,
                                SoftmaxWeightsBody};

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
