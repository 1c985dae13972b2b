#ifndef DDL_MODEL_KERNELS_INSTRUCTION_SET_H_
#define DDL_MODEL_KERNELS_INSTRUCTION_SET_H_

#include <cstdint>
#include <string>
#include <vector>

// Which instructions of an x86 processor the CPU kernels use. One set is chosen when a model is
// loaded. Results of two sets differ in the last bits, as they sum in another order; with one set a
// row's bits do not depend on the rows beside it, the number of threads or the processor.

namespace ddl::kernels {

enum class InstructionSet : uint8_t {
  kPortable,    // x86-64 without extensions
  kAvx2,        // AVX2 and FMA: x86-64-v3
  kAvx512,      // AVX-512 F, BW, DQ, VL: x86-64-v4
  kAvx512Bf16,  // and its BF16 and VNNI: dot products of pairs of bfloat16, of fours of int8
  kAmx,         // and tiles (AMX-TILE, AMX-BF16, AMX-INT8) for matrix products and attention
  // What kAmx computes, by a portable twin of the tile instructions: for tests, slow.
  kAmxEmulated,
};

// In this order, the slowest first; kAmxEmulated last.
std::vector<InstructionSet> AllInstructionSets();

// "portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated".
const char* Name(InstructionSet set);

// Empty when this process can run the set's kernels, otherwise why not: "the processor lacks
// AVX-512 BF16 or VNNI". Asks the operating system for permission to use tiles, for the whole
// process: to be called before threads are started.
std::string WhyUnsupported(InstructionSet set);

// The last that is supported, kAmxEmulated left out.
InstructionSet BestInstructionSet();

}  // namespace ddl::kernels

#endif  // DDL_MODEL_KERNELS_INSTRUCTION_SET_H_
