#include "tests/model/device/tested_device.h"
#include "tests/model/kernels/cuda/block.h"

namespace ddl {

// Linked with the device's twin in cuda_runtime_on_host.cc. Blocks and threads run from the last to
// the first, so that what relies on the CPU's order shows.
RunnerDevice TestedDevice() {
  kernels::cuda_host::SetSchedule(1);
  return RunnerDevice::kCuda;
}

bool IsEmulated() { return true; }

}  // namespace ddl
