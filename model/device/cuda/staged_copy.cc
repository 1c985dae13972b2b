#include "model/device/cuda/staged_copy.h"

#include <ATen/ops/empty.h>

#include <cstring>

#include "base/check.h"
#include "model/device/cuda/runtime.h"

namespace ddl {

at::Tensor StagedCopy::Send(at::Tensor memory) {
  if (!memory.defined()) {
    memory = at::empty({bytes_}, at::TensorOptions().dtype(at::kByte).device(device_));
  }
  DDL_CHECK(memory.numel() == bytes_, "the memory is that of a copy of the same sizes");
  const at::Tensor staging = cuda_runtime::Staging(bytes_);
  auto* const on_device = static_cast<unsigned char*>(memory.data_ptr());
  auto* const on_host = static_cast<unsigned char*>(staging.data_ptr());
  for (const Item& item : items_) *item.pointer = on_device + item.offset;
  for (const Item& item : items_) std::memcpy(on_host + item.offset, item.host, item.bytes);
  memory.copy_(staging, /*non_blocking=*/true);
  return memory;
}

}  // namespace ddl
