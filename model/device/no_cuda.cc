// In place of cuda/device.cc where the build has no CUDA.

#include "absl/status/status.h"
#include "model/device/device.h"

namespace ddl {

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(bool /*batch_invariant*/) {
  return absl::FailedPreconditionError("this program was built without CUDA");
}

}  // namespace ddl
