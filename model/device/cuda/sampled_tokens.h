#ifndef DDL_MODEL_DEVICE_CUDA_SAMPLED_TOKENS_H_
#define DDL_MODEL_DEVICE_CUDA_SAMPLED_TOKENS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "model/device/cuda/runtime.h"
#include "model/device/cuda/staged_copy.h"
#include "model/device/device.h"
#include "model/kernels/cuda/cuda_kernels.h"

namespace ddl {

// Tokens that the device samples: on their way to the host, and where the next step reads them.
class CudaPendingTokens final : public PendingTokens {
 public:
  // sampled [2, rows] int32, on the device: ids, then the bits of logprobs, so that one copy brings
  // back both.
  explicit CudaPendingTokens(const at::Tensor& sampled)
      : sampled_(sampled), copy_(cuda_runtime::CopyToHost(sampled)) {}

  std::vector<SampledToken> Wait() override;
  at::Tensor ids() const override { return sampled_.select(0, 0); }

 private:
  const at::Tensor sampled_;
  const std::unique_ptr<cuda_runtime::HostCopy> copy_;
};

// A step's ids that only the device knows: those of tokens that the step before samples.
class PendingIds {
 public:
  // Sends as much as for `capacity` of them, if those of `ids` are fewer.
  explicit PendingIds(const StepIds& ids, int64_t capacity = 0);
  PendingIds(const PendingIds&) = delete;
  PendingIds& operator=(const PendingIds&) = delete;

  // Where they come from and go to, beside the step's other arrays. This must live until `copy` is
  // sent.
  void AddTo(StagedCopy& copy);
  // Once it is: puts them into `ids`, the step's on the device, where the others have been sent.
  void Fill(const int32_t* ids) const;

 private:
  const int64_t count_;
  std::vector<int32_t> from_, to_;
  at::Tensor sampled_;  // undefined: none
  kernels::cuda::FillIdsArgs args_;
};

}  // namespace ddl

#endif  // DDL_MODEL_DEVICE_CUDA_SAMPLED_TOKENS_H_
