#include "model/kernels/cpu/implementation.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {

InstructionSet Implementation::instruction_set() const {
  return InstructionSet::DDL_INSTRUCTION_SET;
}

const CpuKernels* New(const Executor& executor) { return new Implementation(executor); }

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
