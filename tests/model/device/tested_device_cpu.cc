#include <gtest/gtest.h>

#include <string>

#include "tests/model/device/tested_device.h"
#include "tests/model/tested_instruction_set.h"

namespace ddl {
namespace {

// Skips all tests where DDL_INSTRUCTION_SET is more than the processor has.
class NeedsInstructionSet : public testing::Environment {
 public:
  void SetUp() override {
    const std::string why = kernels::WhyUnsupported(TestedInstructionSet());
    if (!why.empty()) GTEST_SKIP() << why;
  }
};
const testing::Environment* const kNeedsInstructionSet =
    testing::AddGlobalTestEnvironment(new NeedsInstructionSet);

}  // namespace

RunnerDevice TestedDevice() { return RunnerDevice::kCpu; }

bool IsEmulated() { return false; }

}  // namespace ddl
