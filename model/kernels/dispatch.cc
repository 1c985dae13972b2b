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
}

}  // namespace ddl::kernels
