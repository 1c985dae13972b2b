#ifndef DDL_MODEL_DEVICE_CUDA_RUNTIME_H_
#define DDL_MODEL_DEVICE_CUDA_RUNTIME_H_

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/device/device.h"
#include "model/kernels/cuda/cuda_kernels.h"

// What device.cc needs of CUDA's runtime, and of LibTorch's on it. runtime.cc is the real
// one; the tests have a twin that runs on the host (tests/model/device/cuda/runtime_on_host.cc).

namespace ddl::cuda_runtime {

// The first GPU that CUDA_VISIBLE_DEVICES leaves, as LibTorch names it. FAILED_PRECONDITION, in one
// line, when there is none.
absl::StatusOr<at::Device> Open();

// The stream that LibTorch's operators of this thread run on: kernels go there too, so that all of
// a step runs in the order of the calls.
kernels::cuda::Stream CurrentStream();

// `bytes` of host memory from which a copy to the device need not be waited for.
at::Tensor Staging(int64_t bytes);

// On the current stream.
std::unique_ptr<Event> RecordEvent();

// A tensor on its way to host memory.
class HostCopy {
 public:
  virtual ~HostCopy() = default;
  // Waits until it has arrived, as an Event does.
  virtual at::Tensor Wait() = 0;
};
// As the stream will have computed `tensor` so far; later launches may overwrite it. Does not wait.
std::unique_ptr<HostCopy> CopyToHost(const at::Tensor& tensor);

// Launches that were captured, and run again in the order in which they were.
class Graph {
 public:
  virtual ~Graph() = default;
  // On the current stream. Reads and writes what the launches' pointers point to by now.
  virtual void Replay() = 0;
};
// Captures what `work` launches, after having run it once, which prepares what products need. All
// memory that it takes is given back within it, and is used again by each replay: of all graphs
// only one may run at a time. Throws when `work` does, or does what cannot be captured.
std::unique_ptr<Graph> Capture(const std::function<void()>& work);

// What CUDA calls an error.
std::string ErrorText(kernels::cuda::Error error);
// Throws c10::Error when `kernel` was not launched.
inline void Check(kernels::cuda::Error error, const char* kernel) {
  TORCH_CHECK(error == kernels::cuda::kSuccess, "the CUDA kernel ", kernel,
              " failed: ", ErrorText(error));
}

// Whether FlashAttention takes such tensors: bfloat16 heads of 8, 16, ... 256 elements.
bool HasFlashAttention(at::ScalarType type, int64_t head_dim);
// softmax(q K^T / sqrt(hd)) V of packed sequences. `row_begin` and `position_begin`
// [sequences + 1], int32 on the device, say where each begins in q [rows, H, hd], whose rows may be
// further apart, and in k and v [positions, H, hd]. A sequence's rows are its last positions, and
// each sees the positions up to its own. `most_rows` and `longest` are of any sequence.
// Returns [rows, H, hd].
at::Tensor FlashAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& row_begin, const at::Tensor& position_begin,
                          int64_t most_rows, int64_t longest);

// Waits for all that was launched. UNAVAILABLE after an error that CUDA does not recover from.
absl::Status Health();

DeviceMemory Memory();

// Frees what LibTorch's allocator caches.
void ReleaseUnused();

}  // namespace ddl::cuda_runtime

#endif  // DDL_MODEL_DEVICE_CUDA_RUNTIME_H_
