#ifndef DDL_MODEL_DEVICE_CUDA_DECODE_GRAPHS_H_
#define DDL_MODEL_DEVICE_CUDA_DECODE_GRAPHS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>

#include "absl/types/span.h"
#include "model/device/cuda/runtime.h"
#include "model/device/device.h"
#include "model/kernels/kernels.h"

namespace ddl {

// A graph for each of 1, 2, 4, 8 ... rows and the largest number there can be. It is captured when
// a step of its size first comes; that step waits for it, no other does. A step takes the next
// larger graph, whose other rows are those of sequences of one position in the spare block.
//
// A graph's launches have the pointers and sizes that they were captured with. So it has input
// arrays of its own, as long as they can be, into which each step's are copied; and attention's
// grids are those of the longest context.
class CudaDecodeGraphs final : public DecodeGraphs {
 public:
  CudaDecodeGraphs(at::Device device, const DecodeGraphShape& shape)
      : device_(device), shape_(shape) {}

  bool Run(const kernels::Batch& batch, const StepIds& ids, const Layers& layers) override;

 private:
  struct Graph {
    at::Tensor input;  // what the launches' input pointers point into
    std::unique_ptr<cuda_runtime::Graph> launches;
  };

  int64_t RowsOfGraph(int64_t rows) const;
  // Copies the batch, filled up to `rows` rows, into `memory`, or into new memory if that is
  // undefined. `taps` ids belong to each row.
  StepInput Upload(int64_t rows, const kernels::Batch& batch, const StepIds& ids, int64_t taps,
                   const at::Tensor& memory) const;

  const at::Device device_;
  const DecodeGraphShape shape_;
  std::map<int64_t, Graph> graphs_;  // by rows
  bool can_capture_ = true;
};

}  // namespace ddl

#endif  // DDL_MODEL_DEVICE_CUDA_DECODE_GRAPHS_H_
