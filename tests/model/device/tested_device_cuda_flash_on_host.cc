#include "tests/model/device/cuda/runtime_on_host.h"
#include "tests/model/device/tested_device.h"

namespace ddl {

// Linked with the device's twin, which here has flash attention for every type.
RunnerDevice TestedDevice() {
  cuda_runtime::on_host.flash_attention = true;
  return RunnerDevice::kCuda;
}

bool IsEmulated() { return true; }

}  // namespace ddl
