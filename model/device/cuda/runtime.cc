#include "model/device/cuda/runtime.h"

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cmath>
#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ddl::cuda_runtime {
namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;

void CheckCuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that nobody else finds it
  TORCH_CHECK(false, call, ": ", ErrorText(error));
}

constexpr c10::DeviceIndex kDevice = 0;
// Of the memory that graphs use. LibTorch numbers its pools from 1; a program that captures through
// it, too, would need another number here.
constexpr c10::MempoolId_t kGraphPool = {1, 0};

class CudaEvent final : public Event {
 public:
  CudaEvent() {
    CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "create an event");
  }
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void Record() { CheckCuda(cudaEventRecord(event_, CurrentStream()), "record an event"); }
  void Wait() override { CheckCuda(cudaEventSynchronize(event_), "wait for an event"); }

 private:
  cudaEvent_t event_ = nullptr;
};

class PinnedCopy final : public HostCopy {
 public:
  explicit PinnedCopy(const at::Tensor& tensor)
      : on_host_(at::empty(tensor.sizes(), tensor.options().device(at::kCPU).pinned_memory(true))) {
    on_host_.copy_(tensor, /*non_blocking=*/true);
    arrived_.Record();
  }
  at::Tensor Wait() override {
    arrived_.Wait();
    return on_host_;
  }

 private:
  // LibTorch's allocator of pinned memory tracks the copy: freed early, the memory is not reused
  // before it is done.
  const at::Tensor on_host_;
  CudaEvent arrived_;
};

class CapturedGraph final : public Graph {
 public:
  // Takes them over, and the use of the pool that they were captured with.
  explicit CapturedGraph(cudaGraphExec_t launches) : launches_(launches) {}
  ~CapturedGraph() override {
    cudaGraphExecDestroy(launches_);
    allocator::releasePool(kDevice, kGraphPool);
  }
  void Replay() override { CheckCuda(cudaGraphLaunch(launches_, CurrentStream()), "replay"); }

 private:
  const cudaGraphExec_t launches_;
};

// What `work` launches on `stream`, the current one. The pool's memory is the graph's from here on.
cudaGraphExec_t CaptureOn(cudaStream_t stream, const std::function<void()>& work) {
  // Of this thread alone: others may go on using the device.
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin a capture");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  CheckCuda(cudaStreamEndCapture(stream, &graph), "end a capture");
  cudaGraphExec_t launches = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&launches, graph, 0);
  cudaGraphDestroy(graph);
  CheckCuda(error, "instantiate a graph");
  return launches;
}

// LibTorch's operators for the GPU, which register themselves. Not linked, but loaded where there
// is a GPU: elsewhere a start would read 3 GB of libraries for nothing, and all threads' stacks
// would have to hold their thread-local storage, for which those of the HTTP server are too small.
absl::Status LoadOperators() {
  static void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (library != nullptr) return absl::OkStatus();
  const char* const error = dlerror();
  return absl::FailedPreconditionError(absl::StrCat("LibTorch's CUDA part cannot be loaded: ",
                                                    error != nullptr ? error : "unknown error"));
}

}  // namespace

absl::StatusOr<at::Device> Open() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();  // so that nobody else finds it
    return absl::FailedPreconditionError(
        absl::StrCat("this machine has no GPU that CUDA can use: ",
                     error != cudaSuccess ? ErrorText(error) : "no device was found"));
  }
  if (absl::Status status = LoadOperators(); !status.ok()) return status;
  // What cuBLAS splits over the inner dimension is added up in float32, not in bfloat16.
  at::globalContext().setAllowBF16ReductionCuBLAS(false);
  return at::Device(at::kCUDA, 0);
}

kernels::cuda::Stream CurrentStream() { return c10::cuda::getCurrentCUDAStream().stream(); }

at::Tensor Staging(int64_t bytes) {
  return at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
}

std::unique_ptr<Event> RecordEvent() {
  auto event = std::make_unique<CudaEvent>();
  event->Record();
  return event;
}

std::unique_ptr<HostCopy> CopyToHost(const at::Tensor& tensor) {
  return std::make_unique<PinnedCopy>(tensor);
}

std::string ErrorText(kernels::cuda::Error error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

std::unique_ptr<Graph> Capture(const std::function<void()>& work) {
  // As long as the process: once all graphs are gone the allocator would forget the pool, and
  // refuse its number to the next.
  static const bool pool_is_kept = [] {
    allocator::createOrIncrefPool(kDevice, kGraphPool);
    return true;
  }();
  static_cast<void>(pool_is_kept);
  // The default stream cannot be captured. Always the same one: products keep memory for each.
  static const c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool(false, kDevice);
  CheckCuda(cudaDeviceSynchronize(), "wait before a capture");  // the streams do not
  const c10::cuda::CUDAStreamGuard guard(stream);
  work();
  CheckCuda(cudaStreamSynchronize(stream.stream()), "wait before a capture");
  allocator::beginAllocateToPool(kDevice, kGraphPool,
                                 [](cudaStream_t asking) { return asking == stream.stream(); });
  try {
    auto graph = std::make_unique<CapturedGraph>(CaptureOn(stream.stream(), work));
    allocator::endAllocateToPool(kDevice, kGraphPool);
    return graph;
  } catch (...) {
    allocator::endAllocateToPool(kDevice, kGraphPool);
    allocator::releasePool(kDevice, kGraphPool);
    throw;
  }
}

bool HasFlashAttention(at::ScalarType type, int64_t head_dim) {
  return type == at::kBFloat16 && head_dim % 8 == 0 && head_dim <= 256;
}

at::Tensor FlashAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& row_begin, const at::Tensor& position_begin,
                          int64_t most_rows, int64_t longest) {
  // FlashAttention-2 aligns its causal mask to the last row and the last position, unlike
  // scaled_dot_product_attention, which therefore refuses the mask where q is shorter than k.
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(2)));
  return std::get<0>(at::_flash_attention_forward(q, k, v, row_begin, position_begin, most_rows,
                                                  longest, /*dropout_p=*/0.0, /*is_causal=*/true,
                                                  /*return_debug_mask=*/false, scale));
}

absl::Status Health() {
  cudaGetLastError();  // what a failed launch left, which harms nobody else
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? absl::OkStatus() : absl::UnavailableError(ErrorText(error));
}

DeviceMemory Memory() {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return {};
  return {.free_bytes = static_cast<int64_t>(free), .total_bytes = static_cast<int64_t>(total)};
}

void ReleaseUnused() { c10::cuda::CUDACachingAllocator::emptyCache(); }

}  // namespace ddl::cuda_runtime
