#include "model/attention.h"

#include <cmath>
#include <vector>

namespace ddl {
namespace {

kernels::Type KernelType(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat ? kernels::Type::kFloat32 : kernels::Type::kBFloat16;
}

kernels::Activation KernelActivation(Activation activation) {
  switch (activation) {
    case Activation::kIdentity:
      return kernels::Activation::kIdentity;
    case Activation::kSilu:
      return kernels::Activation::kSilu;
    case Activation::kRelu:
      return kernels::Activation::kRelu;
    case Activation::kElu1:
      return kernels::Activation::kElu1;
  }
  return kernels::Activation::kIdentity;
}

}  // namespace

RotaryTable::RotaryTable(const ModelConfig& config, int64_t positions, at::Device device)
    : positions_(positions) {
  rotary_dims_ =
      2 * (static_cast<int64_t>(static_cast<double>(config.head_dim) * config.rope_ratio) / 2);
  std::vector<float> cos, sin;
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t n = 0; n < rotary_dims_ / 2; ++n) {
      const auto exponent = -2.0 * static_cast<double>(n) / static_cast<double>(rotary_dims_);
      const auto theta = static_cast<float>(std::pow(config.rope_base, exponent));
      const float angle = static_cast<float>(position) * theta;  // float32, as the official code
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
  }
  cos_ = KernelFloats(cos, device);
  sin_ = KernelFloats(sin, device);
}

Attention::Attention(const Checkpoint& checkpoint, const std::string& prefix,
                     const at::TensorOptions& options, const LinearOptions& linear,
                     const Device& device, const RotaryTable* rotary)
    : d_(checkpoint.config().hidden_size),
      heads_(checkpoint.config().num_attention_heads),
      head_dim_(checkpoint.config().head_dim),
      kernels_(&device.kernels()),
      rotary_(rotary),
      q_activation_(KernelActivation(checkpoint.config().q_activation)),
      k_activation_(KernelActivation(checkpoint.config().k_activation)),
      v_activation_(KernelActivation(checkpoint.config().v_activation)) {
  const ModelConfig& config = checkpoint.config();
  const auto weight = [&](const std::string& name) {
    return WeightAs(checkpoint.Get(prefix + name), options);
  };
  const auto floats = [&](const std::string& name) {
    return KernelFloats(WeightFloats(checkpoint.Get(prefix + name)), options.device());
  };
  qkv_ =
      Linear({weight("c_q.weight"), weight(config.use_k_shift ? "c_k.linear.weight" : "c_k.weight"),
              weight(config.use_v_shift ? "c_v.linear.weight" : "c_v.weight")},
             linear);
  output_ = Linear({weight("c_proj.weight")}, linear);
  if (config.use_k_shift) k_shift_ = floats("c_k.shift_proj.weight");
  if (config.use_v_shift) v_shift_ = floats("c_v.shift_proj.weight");
  if (config.use_qk_rmsnorm) {
    q_norm_ = floats("q_rms.weight");
    k_norm_ = floats("k_rms.weight");
  }
  has_gate_ = config.use_output_gate;
  if (has_gate_) {
    gate_ = Linear({weight("g_proj.weight")}, linear);
  }
  if (config.using_groupnorm) {
    output_norm_ = floats("subln.weight");
  } else if (has_gate_) {
    output_norm_ = floats("o_norm.weight");
    output_norm_eps_ = static_cast<float>(config.rms_norm_eps);
  }
}

std::vector<Attention::NamedMatMul> Attention::MatMuls() const {
  std::vector<NamedMatMul> all = {{"attn.c_q, c_k, c_v", &qkv_}, {"attn.c_proj", &output_}};
  if (has_gate_) all.push_back({"attn.g_proj", &gate_});
  return all;
}

at::Tensor Attention::Write(const kernels::Batch& batch, const at::Tensor& c,
                            const kernels::KvCache& cache, Tails* shift_tails, int64_t layer,
                            const Workspace& workspace) const {
  at::Tensor qkv = qkv_(c, workspace.qkv);
  kernels::AttentionInputArgs input;
  input.type = KernelType(c);
  input.d = d_;
  input.heads = heads_;
  input.head_dim = head_dim_;
  input.c = c.const_data_ptr();
  input.qkv = qkv.data_ptr();
  input.q_activation = q_activation_;
  input.k_activation = k_activation_;
  input.v_activation = v_activation_;
  if (!k_shift_.empty()) {
    input.k_shift = {k_shift_.data(), shift_tails->data(2 * layer), shift_tails->stride()};
  }
  if (!v_shift_.empty()) {
    input.v_shift = {v_shift_.data(), shift_tails->data(2 * layer + 1), shift_tails->stride()};
  }
  input.rotary_dims = rotary_->rotary_dims();
  input.rope_cos = rotary_->cos();
  input.rope_sin = rotary_->sin();
  input.q_norm = q_norm_.data();
  input.k_norm = k_norm_.data();
  input.norm_eps = 1e-5f;
  input.cache = cache;
  kernels_->AttentionInput(batch, input);
  return qkv;
}

at::Tensor Attention::Read(const kernels::Batch& batch, const at::Tensor& c, const at::Tensor& qkv,
                           const kernels::KvCache& cache, const Workspace& workspace) const {
  const at::Tensor y = workspace.y.narrow(0, 0, c.size(0));
  const at::Tensor gate = has_gate_ ? gate_(c) : at::Tensor();
  kernels::PagedAttentionArgs attention;
  attention.type = KernelType(c);
  attention.heads = heads_;
  attention.head_dim = head_dim_;
  attention.q = qkv.const_data_ptr();
  attention.q_stride = 3 * heads_ * head_dim_;
  attention.cache = cache;
  attention.norm_weight = output_norm_.data();
  attention.norm_eps = output_norm_eps_;
  attention.gate = has_gate_ ? gate.const_data_ptr() : nullptr;
  attention.y = y.data_ptr();
  kernels_->PagedAttention(batch, attention);
  return output_(y, workspace.h);
}

}  // namespace ddl
