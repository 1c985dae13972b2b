#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/model/device/tested_device.h"

namespace ddl {

// A real GPU. Where there is none the program ends at its first model: ctest then shows it as
// skipped.
RunnerDevice TestedDevice() {
  constexpr int kSkipped = 77;  // as in tests/test_main.cc
  if (const absl::Status status = CheckDevice(RunnerDevice::kCuda); !status.ok()) {
    std::fprintf(stderr, "skipped, needs a GPU: %s\n", std::string(status.message()).c_str());
    std::exit(kSkipped);
  }
  return RunnerDevice::kCuda;
}

bool IsEmulated() { return false; }

}  // namespace ddl
