#include "tests/model/device/tested_device.h"

namespace ddl {

RunnerDevice TestedDevice() { return RunnerDevice::kCpu; }

}  // namespace ddl
