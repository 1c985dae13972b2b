#include "model/delta_residual.h"

#include <vector>

namespace ddl {
namespace {

// Compress by a convolution over value channels, then the read vector: one weight per (i, v).
// weight [d, k], read [dv] -> [d, dv].
std::vector<float> FoldChannelCompress(const std::vector<float>& weight,
                                       const std::vector<float>& read, int64_t d, int64_t taps,
                                       bool causal) {
  const auto dv = static_cast<int64_t>(read.size());
  const int64_t left = causal ? taps - 1 : (taps - 1) / 2;
  std::vector<float> folded(d * dv, 0.0f);
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < dv; ++j) {
      for (int64_t m = 0; m < taps; ++m) {
        const int64_t v = j + m - left;
        if (v >= 0 && v < dv) folded[i * dv + v] += read[j] * weight[i * taps + m];
      }
    }
  }
  return folded;
}

// Compress by a convolution over tokens, then the read vector: weight [d * dv, k], read [dv] ->
// [k, d, dv].
std::vector<float> FoldTokenCompress(const std::vector<float>& weight,
                                     const std::vector<float>& read, int64_t d, int64_t taps) {
  const auto dv = static_cast<int64_t>(read.size());
  std::vector<float> folded(taps * d * dv);
  for (int64_t r = 0; r < taps; ++r) {
    for (int64_t c = 0; c < d * dv; ++c) {
      folded[r * d * dv + c] = read[c % dv] * weight[c * taps + r];
    }
  }
  return folded;
}

}  // namespace

void DeltaResidual::SetCompress(const Checkpoint& checkpoint, const std::string& prefix,
                                bool dv_causal, at::Device device) {
  switch (checkpoint.variant()) {
    case Variant::kGpt:
    case Variant::kVdim1:
      compress_ = kernels::Compress::kIdentity;
      return;
    case Variant::kTc:
    case Variant::kTcec: {
      const TensorView& weight = checkpoint.Get(prefix + "shortconv.weight");
      compress_ = kernels::Compress::kToken;
      taps_ = weight.shape[1];
      compress_weight_ = KernelFloats(
          FoldTokenCompress(WeightFloats(weight), WeightFloats(checkpoint.Get(prefix + "read")),
                            checkpoint.config().hidden_size, taps_),
          device);
      return;
    }
    case Variant::kCc:
    case Variant::kCcec: {
      const TensorView& weight = checkpoint.Get(prefix + "weight");
      compress_ = kernels::Compress::kChannel;
      compress_weight_ = KernelFloats(
          FoldChannelCompress(WeightFloats(weight), WeightFloats(checkpoint.Get(prefix + "read")),
                              checkpoint.config().hidden_size, weight.shape[1], dv_causal),
          device);
      return;
    }
  }
}

DeltaResidual DeltaResidual::BeforeSublayer(const Checkpoint& checkpoint,
                                            const std::string& layer_prefix,
                                            const std::string& sublayer, bool dv_causal,
                                            at::Device device) {
  const ModelConfig& config = checkpoint.config();
  const bool baseline = checkpoint.variant() == Variant::kGpt;
  const auto floats = [&](const std::string& name) {
    return KernelFloats(WeightFloats(checkpoint.Get(name)), device);
  };
  DeltaResidual result;
  result.SetCompress(checkpoint, layer_prefix + "compress.", dv_causal, device);
  const std::string norm = sublayer == "attn" ? "ln_1.weight" : "ln_2.weight";
  result.norm_weight_ = floats(layer_prefix + norm);
  // The official DDL files give their layer norms 1e-5 whatever rms_norm_eps says; the baseline
  // reads the key.
  result.norm_eps_ = baseline ? static_cast<float>(config.rms_norm_eps) : 1e-5f;
  if (baseline) return result;

  const std::string prefix = layer_prefix + "ddl_" + sublayer + ".";
  result.gates_ = true;
  if (config.ddl_beta_single_linear) {
    result.beta_weight_ = floats(prefix + "beta.weight");
    result.beta_bias_ = WeightFloats(checkpoint.Get(prefix + "beta.bias"))[0];
  } else {
    result.beta_in_ = floats(prefix + "beta_in.weight");
    result.beta_weight_ = floats(prefix + "beta_out.weight");
    result.beta_bias_ = WeightFloats(checkpoint.Get(prefix + "beta_out.bias"))[0];
  }
  const bool dim1 = checkpoint.variant() == Variant::kVdim1;
  if (dim1 ? config.ddl_v_dim1_constant : config.ddl_v_constant) {
    result.v_constant_ =
        static_cast<float>(dim1 ? config.ddl_v_dim1_constant_value : config.ddl_v_constant_value);
    return result;
  }
  result.v_weight_ = floats(prefix + "v_proj.weight");
  result.v_bias_ = floats(prefix + "v_proj.bias");
  result.v_sigmoid_ = config.ddl_v_sigmoid;
  result.v_scale_ = static_cast<float>(config.ddl_v_sigmoid_scale);
  return result;
}

DeltaResidual DeltaResidual::BeforeHead(const Checkpoint& checkpoint, bool dv_causal,
                                        at::Device device) {
  DeltaResidual result;
  result.SetCompress(checkpoint, "readout.", dv_causal, device);
  result.norm_weight_ = KernelFloats(WeightFloats(checkpoint.Get("ln_f.weight")), device);
  result.norm_eps_ = checkpoint.variant() == Variant::kGpt
                         ? static_cast<float>(checkpoint.config().rms_norm_eps)
                         : 1e-5f;
  return result;
}

void DeltaResidual::Describe(kernels::DeltaStepArgs& args) const {
  args.compress = compress_;
  args.compress_weight = compress_weight_.data();
  args.taps = taps_;
  args.norm_weight = norm_weight_.data();
  args.norm_eps = norm_eps_;
  args.gates = gates_;
  args.gate.beta_weight = beta_weight_.data();
  args.gate.beta_in = beta_in_.data();
  args.gate.beta_hidden = beta_in_.empty() ? 0 : beta_weight_.size();
  args.gate.beta_bias = beta_bias_;
  args.gate.v_weight = v_weight_.data();
  args.gate.v_bias = v_bias_.data();
  args.gate.v_sigmoid = v_sigmoid_;
  args.gate.v_scale = v_scale_;
  args.gate.v_constant = v_constant_;
}

}  // namespace ddl
