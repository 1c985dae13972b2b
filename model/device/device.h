#ifndef DDL_MODEL_DEVICE_DEVICE_H_
#define DDL_MODEL_DEVICE_DEVICE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/thread_pool.h"
#include "model/kernels/cpu/cpu_kernels.h"
#include "model/kernels/kernels.h"
#include "model/sampler.h"

namespace ddl {

// A step's integers where the kernels read them.
struct StepInput {
  kernels::Batch batch;
  const int32_t* ids = nullptr;
  at::Tensor memory;  // what the pointers point into; undefined where that is the caller's own
  std::shared_ptr<const kernels::AttentionPlan> attention_plan;  // the batch's
};

// A point in the order of a device's work, as a CUDA event is.
class Event {
 public:
  virtual ~Event() = default;
  // Waits until all that was launched before it has run. Throws when any of that failed.
  virtual void Wait() = 0;
};

// Tokens that are being sampled.
class PendingTokens {
 public:
  virtual ~PendingTokens() = default;
  // Waits for them: one for each row, without the lists of most likely ones. Its id is -1 where the
  // row's logits are not all finite. At most once.
  virtual std::vector<SampledToken> Wait() = 0;
  // [rows] int32, on the device: their ids as soon as what was launched so far has run.
  virtual at::Tensor ids() const = 0;
};

// The token ids of a step's positions [tokens, taps], oldest first. In host memory.
struct StepIds {
  absl::Span<const int32_t> ids;
  // Those that are still being sampled, if any: ids[to[n]] becomes the id of the token
  // pending[from[n]], or 0 where that row's logits were not all finite.
  const PendingTokens* pending = nullptr;
  absl::Span<const int32_t> from, to;
};

struct DeviceMemory {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

// What decode steps of any composition have in common.
struct DecodeGraphShape {
  int64_t max_rows = 0;            // one for each sequence
  int64_t longest = 0;             // positions of a sequence
  int64_t kv_block_size = 0;       // positions
  int64_t block_table_stride = 0;  // blocks of the longest
  // Of no sequence: padding rows write here.
  int32_t spare_block = 0;
  int32_t spare_slot = 0;
};

// Decode steps whose launches were captured and are launched as one. Used by one thread at a time.
class DecodeGraphs {
 public:
  virtual ~DecodeGraphs() = default;

  // Launches all of a step, writing only what belongs to its rows, the spare block and slot, and
  // tensors that are as before at every call.
  using Layers = std::function<void(const StepInput& input)>;

  // Runs the step by its graph; `layers` is called where that is to be captured first. False, with
  // nothing done, for a step that has several rows of a sequence, or where none can be captured.
  // `batch` and `ids` are in host memory, and may go at once.
  virtual bool Run(const kernels::Batch& batch, const StepIds& ids, const Layers& layers) = 0;

  // Steps that came from a graph so far.
  virtual int64_t replays() const = 0;
};

// Where a model computes: its tensors live there and its kernels run there. Used by one thread at a
// time; may throw c10::Error, as the model may.
class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;  // "cpu" | "cuda:N"
  virtual at::Device tensors() const = 0;
  // Whether calls return before their results are computed, which happens in the order of the
  // calls.
  virtual bool is_async() const = 0;
  // How many rows every matrix product has, so that a row's bits are the same in any; 0: as many as
  // there are.
  virtual int64_t matmul_rows() const = 0;
  // Matrix products are fast when the dimension that they sum over is a multiple of this: others
  // are padded with zeros where a model is free to.
  virtual int64_t matmul_multiple() const = 0;
  // Valid as long as the device.
  virtual const kernels::Kernels& kernels() const = 0;
  // What the host samples with.
  virtual const kernels::CpuKernels& host_kernels() const = 0;
  // What computes matrix products on this device; null: LibTorch.
  virtual const kernels::CpuKernels* matmul_kernels() const = 0;

  // `batch` and `ids`, in host memory, for a call of kernels. They must outlive the result where
  // the device is the CPU; elsewhere they may go at once.
  virtual StepInput Upload(const kernels::Batch& batch, const StepIds& ids) const = 0;

  // Null where launches cost nothing. Must be destroyed before what the layers use.
  virtual std::unique_ptr<DecodeGraphs> MakeDecodeGraphs(const DecodeGraphShape& shape) const = 0;

  // After all that was launched so far. Null unless is_async().
  virtual std::unique_ptr<Event> RecordEvent() const = 0;

  // x [rows, d] -> the rows given, in host memory, which need only live during the call.
  virtual at::Tensor GatherRows(const at::Tensor& x, absl::Span<const int32_t> rows) const = 0;

  // Whether SampleTokens serves the request; otherwise the host calls Sample. An asynchronous
  // device serves all that do not ask for the most likely tokens.
  virtual bool CanSample(const SampleRequest& request) const = 0;
  // logits [requests, vocab] in float32, on the device -> a token for each row. Does not wait for
  // them; `requests` need only live during the call.
  virtual std::unique_ptr<PendingTokens> SampleTokens(
      const at::Tensor& logits, absl::Span<const SampleRequest> requests) const = 0;

  // OK as long as the device works. UNAVAILABLE once it does not, and never will again in this
  // process. Waits for what runs.
  virtual absl::Status Health() const = 0;

  // The device's own memory, shared by all processes; nullopt on the CPU, where it is taken only as
  // it is written.
  virtual std::optional<DeviceMemory> memory() const = 0;
  // Frees memory that tensors have used and the tensor library caches for later ones.
  virtual void ReleaseUnusedMemory() const = 0;
};

// By kernels of the CPU, such as MakeCpuKernels makes.
std::unique_ptr<Device> MakeCpuDevice(std::unique_ptr<const kernels::CpuKernels> kernels);
// `set` must be supported. They run on `threads`, which must outlive them.
std::unique_ptr<const kernels::CpuKernels> MakeCpuKernels(kernels::InstructionSet set,
                                                          ThreadPool* threads);

// The machine's first GPU. FAILED_PRECONDITION, in one line, when it has none or the program was
// built without CUDA (no_cuda.cc is linked instead).
// `batch_invariant`: sees to it that a row's bits do not depend on what else is computed with it,
// which takes longer.
absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(bool batch_invariant = false);

}  // namespace ddl

#endif  // DDL_MODEL_DEVICE_DEVICE_H_
