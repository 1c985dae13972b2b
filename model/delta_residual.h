#ifndef DDL_MODEL_DELTA_RESIDUAL_H_
#define DDL_MODEL_DELTA_RESIDUAL_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "model/checkpoint/checkpoint.h"
#include "model/kernels/kernels.h"
#include "model/weights.h"

namespace ddl {

// One sublayer boundary of a model: the read of the state that feeds the sublayer after it, and
// how that sublayer's output will be written. Weights are folded for kernels::DeltaStep:
//   CC  W[i, v]    = sum_j read[j] w[i, v - j + p], taps out of range 0, p = (k - 1) / 2
//                    (p = k - 1 when causal over the value channels)
//   TC  W[r, i, j] = read[j] w[i * dv + j, r]
class DeltaResidual {
 public:
  // The boundary before sublayer `attn` or `mlp` of a layer: compress, ln_1 or ln_2, gates.
  // `layer_prefix` is "transformer.h.{i}.". The weights go to `device`.
  static DeltaResidual BeforeSublayer(const Checkpoint& checkpoint, const std::string& layer_prefix,
                                      const std::string& sublayer, bool dv_causal,
                                      at::Device device);
  // The boundary before the LM head: readout and ln_f; no gates.
  static DeltaResidual BeforeHead(const Checkpoint& checkpoint, bool dv_causal, at::Device device);

  // Fills in what belongs to this boundary: compress, norm, gates. What belongs to the sublayer
  // before it (rewrite, h, k_eps) and the buffers are the caller's. The pointers live as long as
  // this object.
  void Describe(kernels::DeltaStepArgs& args) const;

  int64_t taps() const { return taps_; }  // TC's k; 0 for the others

 private:
  void SetCompress(const Checkpoint& checkpoint, const std::string& prefix, bool dv_causal,
                   at::Device device);

  kernels::Compress compress_ = kernels::Compress::kIdentity;
  KernelFloats compress_weight_;
  int64_t taps_ = 0;
  KernelFloats norm_weight_;
  float norm_eps_ = 0.0f;

  bool gates_ = false;
  KernelFloats beta_weight_;
  KernelFloats beta_in_;
  float beta_bias_ = 0.0f;
  KernelFloats v_weight_;
  KernelFloats v_bias_;
  bool v_sigmoid_ = true;
  float v_scale_ = 1.0f;
  float v_constant_ = 0.0f;
};

}  // namespace ddl

#endif  // DDL_MODEL_DELTA_RESIDUAL_H_
