#include "tests/model/tested_device.h"

namespace ddl {

// Linked with the device's twin in cuda_runtime_on_host.cc.
RunnerDevice TestedDevice() { return RunnerDevice::kCuda; }

}  // namespace ddl
