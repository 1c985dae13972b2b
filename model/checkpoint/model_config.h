#ifndef DDL_MODEL_CHECKPOINT_MODEL_CONFIG_H_
#define DDL_MODEL_CHECKPOINT_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ddl {

// The six members of the family. config.json does not say which; it is inferred from tensor names
// and ranks (see Checkpoint).
enum class Variant {
  kGpt,    // additive baseline
  kVdim1,  // DDL with dv = 1
  kTc,     // DDL-TC without input expansion: compress convolves over tokens
  kTcec,   // DDL-TC
  kCc,     // DDL-CC without input expansion: compress convolves over value channels
  kCcec,   // DDL-CC, the paper's "DDL"
};
std::string_view VariantName(Variant variant);  // "gpt", "vdim1", "tc", "tcec", "cc", "ccec"

// The states of the official repository (yifanzhang-pro/deep-delta-learning) whose checkpoints
// differ in names, ranks or meaning, oldest first. Inferred likewise.
enum class Revision {
  kLegacy,   // before February 2026
  k2b55f25,  // `model_type: nanogpt-pro`
  kD1f7621,  // `model_type: nanogptpro`
};
std::string_view RevisionName(Revision revision);  // "legacy", "2b55f25", "d1f7621"

enum class Activation { kIdentity, kSilu, kRelu, kElu1 };

// What d1f7621 scales by the model's size. A key `parameterization` that it does not know scales
// nothing; "muP" it refuses.
enum class Parameterization {
  kPlain,
  kWidth,          // widthmuP: the logits
  kWidthAndDepth,  // completeP, spectralP: the logits and every sublayer's update
};

// config.json of the official code. Field names and defaults are the official ones; keys that
// only matter to training or to other variants, and unknown keys, are accepted and ignored, even
// where Python wrote NaN or Infinity. Which class wrote the file (`model_type`, `architectures`)
// decides nothing. A plain value.
struct ModelConfig {
  // The configuration as the code of `revision` reads it for `variant`, both inferred from the
  // tensors.
  // Types are strict as there (a quoted "true" is refused, a quoted number taken where the number
  // may have a fraction), as are ranges. A key that asks for what that code does not do is refused.
  // `source` names the file in messages. One message lists every bad key with the value found and
  // what is allowed.
  static absl::StatusOr<ModelConfig> Parse(std::string_view json, std::string_view source,
                                           Variant variant, Revision revision);

  int64_t vocab_size = 50304;
  int64_t num_hidden_layers = 12;
  int64_t num_attention_heads = 6;
  int64_t hidden_size = 768;
  int64_t head_dim = 128;
  int64_t block_size = 1024;  // context the model was trained for, tokens

  bool using_groupnorm = false;
  bool use_output_gate = false;
  bool use_qk_rmsnorm = true;
  bool use_k_shift = false;
  bool use_v_shift = false;
  Activation q_activation = Activation::kIdentity;
  Activation k_activation = Activation::kIdentity;
  Activation v_activation = Activation::kIdentity;
  double rope_ratio = 1.0;
  double rope_base = 10000.0;
  double rms_norm_eps = 1e-5;
  bool mup = false;  // up to 2b55f25; d1f7621 has the next four
  Parameterization parameterization = Parameterization::kPlain;
  double hidden_size_base = 1024.0;
  std::optional<double> num_hidden_layers_base;  // none: num_hidden_layers
  std::optional<double> residual_branch_mult;    // goes before what parameterization says
  std::optional<int64_t> intermediate_size;      // baseline only
  double mlp_hidden_mult = 8.0 / 3.0;            // baseline only

  double ddl_k_eps = 1e-5;
  bool ddl_beta_single_linear = true;
  int64_t ddl_beta_hidden_size = 128;
  bool ddl_v_sigmoid = true;
  double ddl_v_sigmoid_scale = 4.0;
  int64_t ddl_value_channels = 4;
  std::optional<int64_t> ddl_state_shortconv_kernel_size;  // none: dv in CC, 4 in TC
  bool ddl_v_constant = false;                             // dv > 1
  double ddl_v_constant_value = 2.0;
  bool ddl_v_dim1_constant = false;  // vdim1
  double ddl_v_dim1_constant_value = 2.0;
  int64_t input_embed_shortconv_kernel_size = 4;
  bool ddl_state_dv_shortconv_causal = false;
};

// Width m of the MLP: floor(8/3 d), or what intermediate_size / mlp_hidden_mult say in the
// baseline.
int64_t MlpWidth(const ModelConfig& config, Variant variant);

// What the logits are multiplied by, and what every sublayer's whole update of the state is, in all
// layers alike.
double LogitScale(const ModelConfig& config);
double ResidualMultiplier(const ModelConfig& config);

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_MODEL_CONFIG_H_
