#include "tests/model/device/cuda/runtime_on_host.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "tests/model/device/cuda/tensors_on_host.h"
#include "tests/model/kernels/cuda/block.h"

namespace ddl::cuda_runtime {

OnHost on_host;

absl::StatusOr<at::Device> Open() { return DeviceOnHost(); }

kernels::cuda::Stream CurrentStream() {
  TORCH_CHECK(on_host.stream_error.empty(), on_host.stream_error);
  return nullptr;
}

at::Tensor Staging(int64_t bytes) {
  ++on_host.copies_to_device;
  return at::empty({bytes}, at::kByte);
}

namespace {

class EventOnHost final : public Event {
 public:
  void Wait() override { TORCH_CHECK(on_host.wait_error.empty(), on_host.wait_error); }
};

// What the tensor was when the copy was asked for, as a stream would have it.
class CopyOnHost final : public HostCopy {
 public:
  explicit CopyOnHost(const at::Tensor& tensor) : copy_(tensor.to(at::kCPU)) {}
  at::Tensor Wait() override {
    EventOnHost().Wait();
    return copy_;
  }

 private:
  const at::Tensor copy_;
};

}  // namespace

std::unique_ptr<Event> RecordEvent() { return std::make_unique<EventOnHost>(); }

std::unique_ptr<HostCopy> CopyToHost(const at::Tensor& tensor) {
  ++on_host.copies_to_host;
  return std::make_unique<CopyOnHost>(tensor);
}

std::string ErrorText(kernels::cuda::Error error) { return "error " + std::to_string(error); }

namespace {

// Runs the work again, which must come to the same launches: a device would repeat those.
class RepeatedWork final : public Graph {
 public:
  explicit RepeatedWork(const std::function<void()>& work) : work_(work) {
    work_();
    Launch(captured_);
  }
  void Replay() override {
    ++on_host.replays;
    std::vector<kernels::cuda_host::LaunchShape> launches;
    Launch(launches);
    TORCH_CHECK(launches == captured_, "a replay whose launches are not those that were captured");
  }

 private:
  void Launch(std::vector<kernels::cuda_host::LaunchShape>& launches) {
    kernels::cuda_host::RecordLaunches(&launches);
    const absl::Cleanup stop = [] { kernels::cuda_host::RecordLaunches(nullptr); };
    work_();
  }

  const std::function<void()> work_;
  std::vector<kernels::cuda_host::LaunchShape> captured_;
};

}  // namespace

std::unique_ptr<Graph> Capture(const std::function<void()>& work) {
  TORCH_CHECK(on_host.capture_error.empty(), on_host.capture_error);
  ++on_host.captures;
  return std::make_unique<RepeatedWork>(work);
}

bool HasFlashAttention(at::ScalarType /*type*/, int64_t /*head_dim*/) {
  return on_host.flash_attention;
}

at::Tensor FlashAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& row_begin, const at::Tensor& position_begin,
                          int64_t most_rows, int64_t longest) {
  const int64_t heads = q.size(1), hd = q.size(2);
  const auto on_host = [](const at::Tensor& tensor, at::ScalarType type) {
    TORCH_CHECK(tensor.is_cuda(), "attention is given tensors of the host");
    return tensor.to(at::kCPU, type);
  };
  const at::Tensor q_float = on_host(q, at::kFloat), k_float = on_host(k, at::kFloat),
                   v_float = on_host(v, at::kFloat);
  const at::Tensor row_begins = on_host(row_begin, at::kInt),
                   position_begins = on_host(position_begin, at::kInt);
  const auto at = [&](const at::Tensor& tensor, int64_t row, int64_t head) {
    TORCH_CHECK(row < tensor.size(0), "a row that is not there");
    return tensor.const_data_ptr<float>() + row * tensor.stride(0) + head * tensor.stride(1);
  };
  const at::Tensor attended = at::empty({q.size(0), heads, hd}, at::kFloat);
  for (int64_t s = 0; s + 1 < row_begins.size(0); ++s) {
    const int32_t* const begin = row_begins.const_data_ptr<int32_t>() + s;
    const int32_t* const from = position_begins.const_data_ptr<int32_t>() + s;
    const int64_t rows = begin[1] - begin[0], positions = from[1] - from[0];
    TORCH_CHECK(0 < rows && rows <= most_rows && rows <= positions && positions <= longest,
                "sizes that do not fit together");
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t seen = positions - rows + row + 1;
      for (int64_t head = 0; head < heads; ++head) {
        std::vector<double> weight(seen), sum(hd);
        double largest = -INFINITY, total = 0.0;
        for (int64_t p = 0; p < seen; ++p) {
          for (int64_t n = 0; n < hd; ++n) {
            weight[p] += at(q_float, begin[0] + row, head)[n] * at(k_float, from[0] + p, head)[n];
          }
          weight[p] /= std::sqrt(static_cast<double>(hd));
          largest = std::max(largest, weight[p]);
        }
        for (double& w : weight) total += w = std::exp(w - largest);
        for (int64_t p = 0; p < seen; ++p) {
          for (int64_t n = 0; n < hd; ++n) {
            sum[n] += weight[p] / total * at(v_float, from[0] + p, head)[n];
          }
        }
        float* const to = attended.data_ptr<float>() + ((begin[0] + row) * heads + head) * hd;
        for (int64_t n = 0; n < hd; ++n) to[n] = static_cast<float>(sum[n]);
      }
    }
  }
  return attended.to(q.options());
}

absl::Status Health() { return on_host.health; }

DeviceMemory Memory() { return on_host.memory; }

void ReleaseUnused() {}

}  // namespace ddl::cuda_runtime
