#include "model/device/cuda/sampled_tokens.h"

#include <algorithm>
#include <cstring>

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

PendingIds::PendingIds(const StepIds& ids, int64_t capacity)
    : count_(static_cast<int64_t>(ids.to.size())),
      from_(ids.from.begin(), ids.from.end()),
      to_(ids.to.begin(), ids.to.end()) {
  from_.resize(std::max(capacity, count_));
  to_.resize(from_.size());
  if (ids.pending != nullptr) sampled_ = ids.pending->ids();
}

void PendingIds::AddTo(StagedCopy& copy) {
  args_.from = from_.data();
  args_.to = to_.data();
  copy.Add(&args_.from, static_cast<int64_t>(from_.size()));
  copy.Add(&args_.to, static_cast<int64_t>(to_.size()));
}

void PendingIds::Fill(const int32_t* ids) const {
  if (!sampled_.defined()) return;
  kernels::cuda::FillIdsArgs args = args_;
  args.sampled = sampled_.const_data_ptr<int32_t>();
  args.ids = const_cast<int32_t*>(ids);
  cuda_runtime::Check(kernels::cuda::FillIds(cuda_runtime::CurrentStream(), count_, args),
                      "FillIds");
}

}  // namespace ddl
