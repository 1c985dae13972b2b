#ifndef DDL_MODEL_DEVICE_CUDA_SAMPLED_TOKENS_H_
#define DDL_MODEL_DEVICE_CUDA_SAMPLED_TOKENS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "model/device/cuda/runtime.h"
#include "model/device/device.h"

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

// Puts the ids that are still being sampled into `on_device`, where the others have been sent.
void FillIds(at::Device device, const StepIds& ids, const int32_t* on_device);

}  // namespace ddl

#endif  // DDL_MODEL_DEVICE_CUDA_SAMPLED_TOKENS_H_
