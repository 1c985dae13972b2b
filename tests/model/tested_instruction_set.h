#ifndef DDL_TESTS_MODEL_TESTED_INSTRUCTION_SET_H_
#define DDL_TESTS_MODEL_TESTED_INSTRUCTION_SET_H_

#include <cstdlib>
#include <string>

#include "model/kernels/instruction_set.h"

namespace ddl {

// What a test of a whole model computes by: DDL_INSTRUCTION_SET in the environment, as the server
// reads it, else the best. May be one that is not supported.
inline kernels::InstructionSet TestedInstructionSet() {
  const char* const name = std::getenv("DDL_INSTRUCTION_SET");
  for (const kernels::InstructionSet set : kernels::AllInstructionSets()) {
    if (name != nullptr && std::string(kernels::Name(set)) == name) return set;
  }
  return kernels::BestInstructionSet();
}

}  // namespace ddl

#endif  // DDL_TESTS_MODEL_TESTED_INSTRUCTION_SET_H_
