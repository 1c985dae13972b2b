#include "model/kernels/instruction_set.h"

#include <cerrno>
#include <cstring>

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ddl::kernels {
namespace {

#if defined(__x86_64__)
// Linux gives a process the memory that tiles take only when it asks (arch_prctl(2)); filters of
// system calls in containers may refuse.
std::string AskForTiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return "";
  return std::string("the operating system refuses AMX: arch_prctl: ") + std::strerror(errno);
}
#endif

}  // namespace

std::vector<InstructionSet> AllInstructionSets() {
  return {InstructionSet::kPortable,   InstructionSet::kAvx2, InstructionSet::kAvx512,
          InstructionSet::kAvx512Bf16, InstructionSet::kAmx,  InstructionSet::kAmxEmulated};
}

const char* Name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kPortable:
      return "portable";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx512Bf16:
      return "avx512_bf16";
    case InstructionSet::kAmx:
      return "amx";
    case InstructionSet::kAmxEmulated:
      return "amx_emulated";
  }
  return "";
}

std::string WhyUnsupported(InstructionSet set) {
  if (set == InstructionSet::kPortable || set == InstructionSet::kAmxEmulated) return "";
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return "the processor lacks AVX2 or FMA";
  }
  if (set == InstructionSet::kAvx2) return "";
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return "the processor lacks AVX-512 (F, BW, DQ, VL)";
  }
  if (set == InstructionSet::kAvx512) return "";
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) {
    return "the processor lacks AVX-512 BF16 or VNNI";
  }
  if (set == InstructionSet::kAvx512Bf16) return "";
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16") ||
      !__builtin_cpu_supports("amx-int8")) {
    return "the processor lacks AMX (TILE, BF16, INT8)";
  }
  return AskForTiles();
#else
  return "the processor is no x86-64";
#endif
}

InstructionSet BestInstructionSet() {
  for (const InstructionSet set : {InstructionSet::kAmx, InstructionSet::kAvx512Bf16,
                                   InstructionSet::kAvx512, InstructionSet::kAvx2}) {
    if (WhyUnsupported(set).empty()) return set;
  }
  return InstructionSet::kPortable;
}

}  // namespace ddl::kernels
