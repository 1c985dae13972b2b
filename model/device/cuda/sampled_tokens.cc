#include "model/device/cuda/sampled_tokens.h"

#include <cstring>

#include "model/device/cuda/staged_copy.h"
#include "model/kernels/cuda/cuda_kernels.h"

namespace ddl {

std::vector<SampledToken> CudaPendingTokens::Wait() {
  const at::Tensor on_host = copy_->Wait();
  const int64_t count = on_host.size(1);
  const int32_t* const values = on_host.const_data_ptr<int32_t>();
  std::vector<SampledToken> tokens(count);
  for (int64_t n = 0; n < count; ++n) {
    tokens[n].id = values[n];
    std::memcpy(&tokens[n].logprob, &values[count + n], sizeof(float));
  }
  return tokens;
}

void FillIds(at::Device device, const StepIds& ids, const int32_t* on_device) {
  if (ids.pending == nullptr) return;
  const at::Tensor sampled = ids.pending->ids();
  const auto count = static_cast<int64_t>(ids.to.size());
  kernels::cuda::FillIdsArgs args;
  args.sampled = sampled.const_data_ptr<int32_t>();
  args.from = ids.from.data();
  args.to = ids.to.data();
  args.ids = const_cast<int32_t*>(on_device);
  StagedCopy copy(device);
  copy.Add(&args.from, count);
  copy.Add(&args.to, count);
  const at::Tensor memory = copy.Send();
  cuda_runtime::Check(kernels::cuda::FillIds(cuda_runtime::CurrentStream(), count, args),
                      "FillIds");
}

}  // namespace ddl
