#ifndef DDL_MODEL_ATTENTION_H_
#define DDL_MODEL_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/device/device.h"
#include "model/kernels/kernels.h"
#include "model/kv_cache.h"
#include "model/linear.h"
#include "model/weights.h"

namespace ddl {

// cos and sin of position * theta_n, theta_n = rope_base^(-2n / rotary_dims), for every position
// up to the longest context. Shared by all layers.
class RotaryTable {
 public:
  // The table lies on `device`.
  RotaryTable(const ModelConfig& config, int64_t positions, at::Device device);

  int64_t positions() const { return positions_; }
  int64_t rotary_dims() const { return rotary_dims_; }  // even; 0 when there is no rotation
  const float* cos() const { return cos_.data(); }      // [positions, rotary_dims / 2]
  const float* sin() const { return sin_.data(); }

 private:
  int64_t positions_ = 0;
  int64_t rotary_dims_ = 0;
  KernelFloats cos_;
  KernelFloats sin_;
};

// The attention sublayer of one layer: causal multi-head attention over paged K/V, with every
// option of the official code. Order: products, shift, activation, RoPE, QK-RMSNorm, attention,
// norm per head, gate, output product.
class Attention {
 public:
  // `prefix` is "transformer.h.{i}.attn.". `options` say the type of large weights and where all
  // are, `linear` how they are multiplied. `device` and `rotary` must outlive the layer.
  Attention(const Checkpoint& checkpoint, const std::string& prefix,
            const at::TensorOptions& options, const LinearOptions& linear, const Device& device,
            const RotaryTable* rotary);

  // What a call may overwrite, of the large weights' type, with at least as many rows as its input.
  struct Workspace {
    at::Tensor qkv;  // [., 3 * H * hd], or undefined as Linear's
    at::Tensor y;    // [., H * hd]
    at::Tensor h;    // [., d], or undefined; takes the result
  };

  // c [tokens, d], the normalised input. Writes the batch's K and V to `cache` and returns q, k and
  // v [tokens, 3, H, hd]. `shift_tails` holds, per slot, o_k then o_v of the last token; null where
  // nothing shifts.
  at::Tensor Write(const kernels::Batch& batch, const at::Tensor& c, const kernels::KvCache& cache,
                   Tails* shift_tails, int64_t layer, const Workspace& workspace) const;
  // What the batch's rows see: c and qkv as Write took and returned them -> [tokens, d]. The batch
  // may have some of the rows only that were written, if c and qkv have the same.
  at::Tensor Read(const kernels::Batch& batch, const at::Tensor& c, const at::Tensor& qkv,
                  const kernels::KvCache& cache, const Workspace& workspace) const;

  struct NamedMatMul {
    const char* name;  // as checkpoints have it, after the layer's prefix
    const Linear* linear;
  };
  std::vector<NamedMatMul> MatMuls() const;

 private:
  int64_t d_ = 0;
  int64_t heads_ = 0;
  int64_t head_dim_ = 0;
  const kernels::Kernels* kernels_;
  const RotaryTable* rotary_;
  kernels::Activation q_activation_, k_activation_, v_activation_;
  float output_norm_eps_ = 1e-5f;

  Linear qkv_;
  Linear gate_;  // without use_output_gate: unused
  Linear output_;
  bool has_gate_ = false;
  // Empty where the option is off.
  KernelFloats q_norm_, k_norm_;    // [hd]
  KernelFloats output_norm_;        // [hd]
  KernelFloats k_shift_, v_shift_;  // [H, d]
};

}  // namespace ddl

#endif  // DDL_MODEL_ATTENTION_H_
