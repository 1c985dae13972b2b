#include "model/device/device.h"

#include <ATen/ops/empty.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/device/cuda/attention.h"
#include "model/device/cuda/decode_graphs.h"
#include "model/device/cuda/runtime.h"
#include "model/device/cuda/sample_row.h"
#include "model/device/cuda/sampled_tokens.h"
#include "model/device/cuda/staged_copy.h"
#include "model/kernels/cuda/cuda_kernels.h"

namespace ddl {
namespace {

namespace cuda = kernels::cuda;

using cuda_runtime::Check;

class CudaKernels final : public kernels::Kernels {
 public:
  explicit CudaKernels(at::Device device) : attention_(device) {}

#define DDL_LAUNCH_KERNEL(Op)                                                          \
  void Op(const kernels::Batch& batch, const kernels::Op##Args& args) const override { \
    Launch(cuda::Op, #Op, batch, args);                                                \
  }
  DDL_FOR_EACH_KERNEL(DDL_LAUNCH_KERNEL)
#undef DDL_LAUNCH_KERNEL

 private:
  static cuda::Stream Stream() { return cuda_runtime::CurrentStream(); }

  // An op is one call of its function in cuda_kernels.h, with the batch or with its rows alone.
  template <typename Args>
  using OfBatch = cuda::Error (*)(cuda::Stream, const kernels::Batch&, const Args&);
  template <typename Args>
  using OfRows = cuda::Error (*)(cuda::Stream, int64_t, const Args&);
  template <typename Args>
  void Launch(OfBatch<Args> op, const char* name, const kernels::Batch& batch,
              const Args& args) const {
    Check(op(Stream(), batch, args), name);
  }
  template <typename Args>
  void Launch(OfRows<Args> op, const char* name, const kernels::Batch& batch,
              const Args& args) const {
    Check(op(Stream(), batch.tokens, args), name);
  }
  // Attention is more than one call: a library may have a part in it.
  void Launch(decltype(cuda::PagedAttention)* /*op*/, const char* /*name*/,
              const kernels::Batch& batch, const kernels::PagedAttentionArgs& args) const {
    attention_.Run(batch, args);
  }

  mutable CudaAttention attention_;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(at::Device device, bool batch_invariant)
      : tensors_(device),
        batch_invariant_(batch_invariant),
        kernels_(device),
        host_kernels_(kernels::MakeCpuKernels(kernels::BestInstructionSet(), {})) {}

  std::string name() const override { return "cuda:0"; }
  at::Device tensors() const override { return tensors_; }
  bool is_async() const override { return true; }
  // Left alone, cuBLAS chooses the order of a product's sums by the number of rows, and flash
  // attention's depends on a prompt's chunks.
  int64_t matmul_rows() const override { return batch_invariant_ ? 64 : 0; }
  int64_t matmul_multiple() const override { return 8; }  // tensor cores, in bfloat16
  const kernels::Kernels& kernels() const override { return kernels_; }
  const kernels::CpuKernels& host_kernels() const override { return *host_kernels_; }
  const kernels::CpuKernels* matmul_kernels() const override { return nullptr; }

  StepInput Upload(const kernels::Batch& batch, const StepIds& ids) const override {
    StepInput input{.batch = batch, .ids = ids.ids.data(), .memory = {}, .attention_plan = {}};
    StagedCopy copy(tensors_);
    copy.Add(&input.batch.row_begin, batch.sequences + 1);
    copy.Add(&input.batch.row_sequence, batch.tokens);
    copy.Add(&input.batch.position, batch.tokens);
    copy.Add(&input.batch.slot, batch.sequences);
    copy.Add(&input.batch.block_table, batch.sequences * batch.block_table_stride);
    copy.Add(&input.batch.tail_source, batch.sequences);
    copy.Add(&input.batch.row_save, batch.tokens);
    copy.Add(&input.ids, static_cast<int64_t>(ids.ids.size()));
    kernels::AttentionPlan plan;  // without one rows are attended to one by one
    if (!batch_invariant_) plan = MakeAttentionPlan(batch);
    if (!plan.runs.empty()) {
      auto kept = std::make_shared<kernels::AttentionPlan>(std::move(plan));
      kept->device_begins = kept->begins.data();
      copy.Add(&kept->device_begins, static_cast<int64_t>(kept->begins.size()));
      input.batch.attention_plan = kept.get();
      input.attention_plan = std::move(kept);
    }
    PendingIds pending(ids);
    pending.AddTo(copy);
    input.memory = copy.Send();
    pending.Fill(input.ids);
    return input;
  }

  std::unique_ptr<DecodeGraphs> MakeDecodeGraphs(const DecodeGraphShape& shape) const override {
    return std::make_unique<CudaDecodeGraphs>(tensors_, shape);
  }

  std::unique_ptr<Event> RecordEvent() const override { return cuda_runtime::RecordEvent(); }

  at::Tensor GatherRows(const at::Tensor& x, absl::Span<const int32_t> rows) const override {
    const auto count = static_cast<int64_t>(rows.size());
    const at::Tensor gathered = at::empty({count, x.size(1)}, x.options());
    cuda::GatherRowsArgs args;
    args.type = x.scalar_type() == at::kFloat ? kernels::Type::kFloat32 : kernels::Type::kBFloat16;
    args.d = x.size(1);
    args.x = x.const_data_ptr();
    args.rows = rows.data();
    args.y = gathered.data_ptr();
    StagedCopy copy(tensors_);
    copy.Add(&args.rows, count);
    const at::Tensor memory = copy.Send();
    Check(cuda::GatherRows(cuda_runtime::CurrentStream(), count, args), "GatherRows");
    return gathered;
  }

  // The lists of most likely tokens are not computed on the device.
  bool CanSample(const SampleRequest& request) const override { return request.logprobs <= 0; }

  std::unique_ptr<PendingTokens> SampleTokens(
      const at::Tensor& logits, absl::Span<const SampleRequest> requests) const override {
    const auto count = static_cast<int64_t>(requests.size());
    StagedCopy copy(tensors_);
    std::vector<cuda::SampleRow> rows;
    rows.reserve(requests.size());
    for (const SampleRequest& request : requests) AddRow(request, rows, copy);
    cuda::SampleTokensArgs args;
    args.rows = rows.data();
    copy.Add(&args.rows, count);
    const at::Tensor memory = copy.Send();

    const at::TensorOptions on_device = at::TensorOptions().device(tensors_);
    const at::Tensor workspace =
        at::empty({cuda::SampleWorkspaceBytes(count, logits.size(1))}, on_device.dtype(at::kByte));
    const at::Tensor sampled = at::empty({2, count}, on_device.dtype(at::kInt));
    args.vocab = logits.size(1);
    args.logits = logits.const_data_ptr<float>();
    args.workspace = workspace.data_ptr();
    args.id = sampled.data_ptr<int32_t>();
    args.logprob = reinterpret_cast<float*>(args.id + count);
    Check(cuda::SampleTokens(cuda_runtime::CurrentStream(), count, args), "SampleTokens");

    return std::make_unique<CudaPendingTokens>(sampled);
  }

  absl::Status Health() const override { return cuda_runtime::Health(); }
  std::optional<DeviceMemory> memory() const override { return cuda_runtime::Memory(); }
  void ReleaseUnusedMemory() const override { cuda_runtime::ReleaseUnused(); }

 private:
  // Appends to `rows`, which has room: the copy keeps pointers into it.
  static void AddRow(const SampleRequest& request, std::vector<cuda::SampleRow>& rows,
                     StagedCopy& copy) {
    static const SamplingParams kDefaults;
    const SamplingParams& params = request.params != nullptr ? *request.params : kDefaults;
    static_assert(sizeof(cuda::SampleBias) == sizeof(LogitBias) &&
                  offsetof(cuda::SampleBias, bias) == offsetof(LogitBias, bias));
    cuda::SampleRow& row =
        rows.emplace_back(SampleRowOf(params, request.index, request.vocab_size));
    const auto add = [&copy](const auto** pointer, int32_t* size, const auto* values,
                             size_t count) {
      *pointer = values;
      *size = static_cast<int32_t>(count);
      copy.Add(pointer, *size);
    };
    add(&row.bias, &row.bias_count,
        reinterpret_cast<const cuda::SampleBias*>(params.logit_bias.data()),
        params.logit_bias.size());
    add(&row.banned, &row.banned_count, request.banned.data(), request.banned.size());
    add(&row.prompt, &row.prompt_count, request.prompt.data(), request.prompt.size());
    add(&row.generated, &row.generated_count, request.generated.data(), request.generated.size());
  }

  const at::Device tensors_;
  const bool batch_invariant_;
  const CudaKernels kernels_;
  const std::unique_ptr<const kernels::CpuKernels> host_kernels_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(bool batch_invariant) {
  const absl::StatusOr<at::Device> device = cuda_runtime::Open();
  if (!device.ok()) return device.status();
  return std::make_unique<CudaDevice>(*device, batch_invariant);
}

}  // namespace ddl
