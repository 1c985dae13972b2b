#ifndef DDL_MODEL_DEVICE_CUDA_DECODE_GRAPHS_H_
#define DDL_MODEL_DEVICE_CUDA_DECODE_GRAPHS_H_

#include <ATen/core/Tensor.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/types/span.h"
#include "model/device/cuda/runtime.h"
#include "model/device/device.h"
#include "model/kernels/kernels.h"

namespace ddl {

// A graph for each of 1, 2, 4, 8 ... rows and the largest number there can be, and for contexts of
// up to 32, 128, 512 ... blocks. It is captured when a step of its size first comes; that step
// waits for it, no other does. A step takes the next larger graph, whose other rows are those of
// sequences of one position in the spare block.
//
// A graph's launches have the pointers and sizes that they were captured with. So it has input
// arrays of its own, as long as its contexts can be, into which each step's are copied; and
// attention's grids are those of its longest context. Several lengths keep both small: block tables
// of 256 rows of 128 Ki positions are 8 MB.
class CudaDecodeGraphs final : public DecodeGraphs {
 public:
  CudaDecodeGraphs(at::Device device, const DecodeGraphShape& shape)
      : device_(device), shape_(shape) {}

  bool Run(const kernels::Batch& batch, const StepIds& ids, const Layers& layers) override;
  int64_t replays() const override { return replays_; }

 private:
  struct Graph {
    at::Tensor input;  // what the launches' input pointers point into
    std::unique_ptr<cuda_runtime::Graph> launches;
  };

  struct Size {
    int64_t rows = 0;
    int64_t blocks = 0;  // of a sequence
    auto operator<=>(const Size&) const = default;
  };

  // Of the graph for the step.
  Size SizeOf(const kernels::Batch& batch) const;
  // Copies the batch, filled up to `size`, into `memory`, or into new memory if that is undefined.
  // `taps` ids belong to each row.
  StepInput Upload(const Size& size, const kernels::Batch& batch, const StepIds& ids, int64_t taps,
                   const at::Tensor& memory) const;

  const at::Device device_;
  const DecodeGraphShape shape_;
  std::map<Size, Graph> graphs_;
  bool can_capture_ = true;
  int64_t replays_ = 0;
};

}  // namespace ddl

#endif  // DDL_MODEL_DEVICE_CUDA_DECODE_GRAPHS_H_
