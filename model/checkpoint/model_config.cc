#include "model/checkpoint/model_config.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "base/problem_list.h"
#include "base/strict_json.h"
#include "model/checkpoint/convert_command.h"

namespace ddl {
namespace {

using Json = nlohmann::json;

// Far above any model of the family, and low enough that no product of two of them overflows and
// no table sized by them exhausts the memory before the tensors' shapes are compared.
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxCount = 1 << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxValueChannels = 64;
constexpr int64_t kMaxKernelSize = 64;
constexpr double kMinEps = 1e-30;
constexpr double kMaxScale = 1e6;

// Keys of other code's configurations that mean something this format says otherwise. The
// official code refuses them too, because a model built without them would be another model.
struct RefusedKey {
  const char* key;
  Revision since;
};
constexpr RefusedKey kRefusedKeys[] = {
    {"n_embd", Revision::kLegacy},
    {"n_embd_base", Revision::kLegacy},
    {"d_ff_factor", Revision::kLegacy},
    {"delta_beta_init", Revision::kLegacy},
    {"delta_use_short_conv", Revision::kLegacy},
    {"delta_conv_size", Revision::kLegacy},
    {"delta_norm_eps", Revision::kLegacy},
    {"q_rank", Revision::kLegacy},
    {"rank", Revision::kLegacy},
    {"delta_qk_activation", Revision::kD1f7621},
    {"delta_qk_norm", Revision::kD1f7621},
    {"delta_allow_neg_eigval", Revision::kD1f7621},
    {"gated_deltanet_allow_neg_eigval", Revision::kD1f7621},
    {"lambda_scale", Revision::kD1f7621},
    {"fast_weight_lambda", Revision::kD1f7621},
    {"fast_weight_alpha", Revision::kD1f7621},
};

// As d1f7621 spells them; any other string is plain.
struct NamedParameterization {
  const char* name;
  Parameterization value;
};
constexpr NamedParameterization kParameterizations[] = {
    {"widthmuP", Parameterization::kWidth},
    {"widthmup", Parameterization::kWidth},
    {"completeP", Parameterization::kWidthAndDepth},
    {"completep", Parameterization::kWidthAndDepth},
    {"spectralP", Parameterization::kWidthAndDepth},
    {"SpectralP", Parameterization::kWidthAndDepth},
    {"spectralp", Parameterization::kWidthAndDepth},
};

std::string Number(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

// Takes typed values out of the object, and notes what is wrong with them. A key that is absent
// leaves the field's default.
class ConfigKeys {
 public:
  explicit ConfigKeys(const Json& object) : object_(object) {}

  void Take(const char* key, int64_t min, int64_t max, int64_t* field) {
    const Json* value = Find(key);
    if (value == nullptr) return;
    // A value that needs the unsigned type is above any limit.
    const bool fits = value->is_number_integer() &&
                      (!value->is_number_unsigned() || value->get<uint64_t>() <= INT64_MAX);
    if (fits && value->get<int64_t>() >= min && value->get<int64_t>() <= max) {
      *field = value->get<int64_t>();
    } else {
      Refuse(key, *value, "an integer from " + std::to_string(min) + " to " + std::to_string(max));
    }
  }

  void Take(const char* key, int64_t min, int64_t max, std::optional<int64_t>* field) {
    const Json* value = Find(key);
    if (value == nullptr || value->is_null()) return;
    int64_t taken = min;
    Take(key, min, max, &taken);
    *field = taken;
  }

  void Take(const char* key, double min, double max, double* field) {
    const Json* value = Find(key);
    if (value == nullptr) return;
    double number = std::numeric_limits<double>::quiet_NaN();
    if (value->is_number()) number = value->get<double>();
    if (value->is_string() && !absl::SimpleAtod(value->get_ref<const std::string&>(), &number)) {
      number = std::numeric_limits<double>::quiet_NaN();
    }
    if (number >= min && number <= max) {
      *field = number;
    } else {
      Refuse(key, *value, "a number from " + Number(min) + " to " + Number(max));
    }
  }

  // Where null is as good as no key.
  void TakeUnlessNull(const char* key, double min, double max, double* field) {
    const Json* value = Find(key);
    if (value != nullptr && !value->is_null()) Take(key, min, max, field);
  }
  void TakeUnlessNull(const char* key, double min, double max, std::optional<double>* field) {
    const Json* value = Find(key);
    if (value == nullptr || value->is_null()) return;
    double taken = min;
    Take(key, min, max, &taken);
    *field = taken;
  }

  void Take(const char* key, bool* field) {
    const Json* value = Find(key);
    if (value == nullptr) return;
    if (value->is_boolean()) {
      *field = value->get<bool>();
    } else {
      Refuse(key, *value, "true or false");
    }
  }

  void Take(const char* key, Activation* field) {
    const Json* value = Find(key);
    if (value == nullptr) return;
    if (value->is_null() || *value == "identity") {
      *field = Activation::kIdentity;
    } else if (*value == "silu") {
      *field = Activation::kSilu;
    } else if (*value == "relu") {
      *field = Activation::kRelu;
    } else if (*value == "elu+1") {
      *field = Activation::kElu1;
    } else {
      Refuse(key, *value, R"(null, "identity", "silu", "relu" or "elu+1")");
    }
  }

  void Take(const char* key, Parameterization* field) {
    const Json* value = Find(key);
    if (value == nullptr) return;
    for (const NamedParameterization& named : kParameterizations) {
      if (*value == named.name) *field = named.value;
    }
  }

  void Refuse(const char* key) {
    if (const Json* value = Find(key)) {
      Refuse(key, *value, "no such key; the official code refuses it too");
    }
  }

  void Refuse(const char* key, const Json& found, const std::string& allowed) {
    problems_.Add(std::string(key) + ": found " + ShowJson(found) + ", allowed is " + allowed);
  }

  // Of a key that asks for what only another revision's code does: conversion mends it.
  void RefuseInRevision(const char* key, const Json& found, const std::string& allowed) {
    Refuse(key, found, allowed);
    ++convertible_;
  }

  const Json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() ? nullptr : &*it;
  }

  const ProblemList& problems() const { return problems_; }
  // Whether all problems are such.
  bool is_convertible() const { return convertible_ == problems_.size(); }

 private:
  const Json& object_;
  ProblemList problems_;
  size_t convertible_ = 0;
};

void TakeBackbone(ConfigKeys& keys, Variant variant, ModelConfig& config) {
  keys.Take("vocab_size", 1, kMaxCount, &config.vocab_size);
  keys.Take("num_hidden_layers", 1, kMaxLayers, &config.num_hidden_layers);
  keys.Take("num_attention_heads", 1, kMaxWidth, &config.num_attention_heads);
  keys.Take("hidden_size", 1, kMaxWidth, &config.hidden_size);
  keys.Take("head_dim", 1, kMaxWidth, &config.head_dim);
  keys.Take("block_size", 1, kMaxCount, &config.block_size);
  keys.Take("using_groupnorm", &config.using_groupnorm);
  keys.Take("use_output_gate", &config.use_output_gate);
  keys.Take("use_qk_rmsnorm", &config.use_qk_rmsnorm);
  keys.Take("use_k_shift", &config.use_k_shift);
  keys.Take("use_v_shift", &config.use_v_shift);
  keys.Take("q_activation", &config.q_activation);
  keys.Take("k_activation", &config.k_activation);
  keys.Take("v_activation", &config.v_activation);
  keys.Take("rope_ratio", 0.0, 1.0, &config.rope_ratio);
  keys.TakeUnlessNull("rope_base", kMinEps, 1e30, &config.rope_base);
  keys.TakeUnlessNull("rms_norm_eps", kMinEps, 1.0, &config.rms_norm_eps);
  if (variant != Variant::kGpt) return;
  keys.Take("intermediate_size", 1, kMaxCount, &config.intermediate_size);
  keys.TakeUnlessNull("mlp_hidden_mult", kMinEps, 1024.0, &config.mlp_hidden_mult);
  // The precision of the official attention. Here --dtype decides; but a type that the official
  // code has not means something else.
  if (const Json* dtype = keys.Find("attention_dtype"); dtype != nullptr && !dtype->is_null() &&
                                                        *dtype != "auto" && *dtype != "bfloat16" &&
                                                        *dtype != "float32") {
    keys.Refuse("attention_dtype", *dtype, R"("auto", "bfloat16" or "float32")");
  }
}

// What scales the logits and the residual updates: its keys differ by revision.
void TakeScales(ConfigKeys& keys, Revision revision, ModelConfig& config) {
  keys.Take("parameterization", &config.parameterization);
  keys.TakeUnlessNull("residual_branch_mult", kMinEps, kMaxScale, &config.residual_branch_mult);
  if (revision == Revision::kD1f7621) {
    if (const Json* mup = keys.Find("mup")) {
      keys.RefuseInRevision("mup", *mup,
                            "no such key in d1f7621, whose tensor names these are (its "
                            "parameterization \"widthmuP\" does what mup did)");
    }
    if (const Json* value = keys.Find("parameterization");
        value != nullptr && (*value == "muP" || *value == "mup")) {
      keys.Refuse("parameterization", *value,
                  R"("widthmuP", "completeP" or "spectralP"; the official code refuses this one)");
    }
  } else {
    keys.Take("mup", &config.mup);
    const std::string unread = "null: the code whose tensor names these are (" +
                               std::string(RevisionName(revision)) +
                               ") does not read this key, d1f7621 does";
    if (config.parameterization != Parameterization::kPlain) {
      keys.RefuseInRevision("parameterization", *keys.Find("parameterization"), unread);
    }
    if (config.residual_branch_mult.value_or(1.0) != 1.0) {
      keys.RefuseInRevision("residual_branch_mult", *keys.Find("residual_branch_mult"), unread);
    }
  }
  const bool scales = config.mup || config.parameterization != Parameterization::kPlain;
  if (scales) keys.Take("hidden_size_base", kMinEps, kMaxCount, &config.hidden_size_base);
  const Json* layers_base = keys.Find("num_hidden_layers_base");
  if (config.parameterization == Parameterization::kWidthAndDepth && !config.residual_branch_mult &&
      layers_base != nullptr) {
    config.num_hidden_layers_base = 0.0;
    keys.Take("num_hidden_layers_base", kMinEps, kMaxCount, &*config.num_hidden_layers_base);
  }
}

void TakeDelta(ConfigKeys& keys, Variant variant, ModelConfig& config) {
  if (variant == Variant::kGpt) return;
  keys.Take("ddl_k_eps", -kMaxScale, kMaxScale, &config.ddl_k_eps);
  keys.Take("ddl_beta_single_linear", &config.ddl_beta_single_linear);
  keys.Take("ddl_beta_hidden_size", 1, kMaxCount, &config.ddl_beta_hidden_size);
  keys.Take("ddl_v_sigmoid", &config.ddl_v_sigmoid);
  keys.Take("ddl_v_sigmoid_scale", -kMaxScale, kMaxScale, &config.ddl_v_sigmoid_scale);
  if (variant == Variant::kVdim1) {
    keys.Take("ddl_v_dim1_constant", &config.ddl_v_dim1_constant);
    keys.Take("ddl_v_dim1_constant_value", -kMaxScale, kMaxScale,
              &config.ddl_v_dim1_constant_value);
    return;
  }
  keys.Take("ddl_value_channels", 1, kMaxValueChannels, &config.ddl_value_channels);
  keys.Take("ddl_state_shortconv_kernel_size", 1, kMaxKernelSize,
            &config.ddl_state_shortconv_kernel_size);
  keys.Take("ddl_v_constant", &config.ddl_v_constant);
  keys.Take("ddl_v_constant_value", -kMaxScale, kMaxScale, &config.ddl_v_constant_value);
  if (variant == Variant::kTcec || variant == Variant::kCcec) {
    keys.Take("input_embed_shortconv_kernel_size", 1, kMaxKernelSize,
              &config.input_embed_shortconv_kernel_size);
  }
  if (variant == Variant::kCc || variant == Variant::kCcec) {
    keys.Take("ddl_state_dv_shortconv_causal", &config.ddl_state_dv_shortconv_causal);
  }
}

// What no key is to blame for alone.
void CheckTogether(ConfigKeys& keys, const ModelConfig& config) {
  if (const int64_t width = config.num_attention_heads * config.head_dim; width > kMaxWidth) {
    keys.Refuse("num_attention_heads", config.num_attention_heads,
                "at most " + std::to_string(kMaxWidth) +
                    " for num_attention_heads times head_dim, which is " + std::to_string(width));
  }
  if (MlpWidth(config, Variant::kGpt) < 1) {
    keys.Refuse("mlp_hidden_mult", config.mlp_hidden_mult,
                "what makes an MLP of width 1 or more at hidden_size " +
                    std::to_string(config.hidden_size));
  }
}

}  // namespace

std::string_view VariantName(Variant variant) {
  switch (variant) {
    case Variant::kGpt:
      return "gpt";
    case Variant::kVdim1:
      return "vdim1";
    case Variant::kTc:
      return "tc";
    case Variant::kTcec:
      return "tcec";
    case Variant::kCc:
      return "cc";
    case Variant::kCcec:
      return "ccec";
  }
  return "unknown";
}

std::string_view RevisionName(Revision revision) {
  switch (revision) {
    case Revision::kLegacy:
      return "legacy";
    case Revision::k2b55f25:
      return "2b55f25";
    case Revision::kD1f7621:
      return "d1f7621";
  }
  return "unknown";
}

absl::StatusOr<ModelConfig> ModelConfig::Parse(std::string_view json, std::string_view source,
                                               Variant variant, Revision revision) {
  absl::StatusOr<Json> object = ParsePythonJsonObject(json, source);
  if (!object.ok()) return object.status();
  ConfigKeys keys(*object);
  for (const RefusedKey& refused : kRefusedKeys) {
    if (revision >= refused.since) keys.Refuse(refused.key);
  }
  if (const Json* version = keys.Find("ddl_sequence_reduction_version");
      version != nullptr && !(version->is_number_integer() && *version == 1)) {
    keys.Refuse("ddl_sequence_reduction_version", *version, "1");
  }
  ModelConfig config;
  TakeBackbone(keys, variant, config);
  TakeScales(keys, revision, config);
  TakeDelta(keys, variant, config);
  CheckTogether(keys, config);
  if (keys.problems().empty()) return config;
  const absl::Status refused = absl::InvalidArgumentError(keys.problems().Message(
      std::string(source) + " does not describe a model that can be served:"));
  return keys.is_convertible() ? Convertible(refused) : refused;
}

double LogitScale(const ModelConfig& config) {
  const bool scales = config.mup || config.parameterization != Parameterization::kPlain;
  return scales ? config.hidden_size_base / static_cast<double>(config.hidden_size) : 1.0;
}

double ResidualMultiplier(const ModelConfig& config) {
  if (config.residual_branch_mult) return *config.residual_branch_mult;
  if (config.parameterization != Parameterization::kWidthAndDepth) return 1.0;
  const auto layers = static_cast<double>(config.num_hidden_layers);
  return config.num_hidden_layers_base.value_or(layers) / layers;
}

int64_t MlpWidth(const ModelConfig& config, Variant variant) {
  const auto hidden_size = static_cast<double>(config.hidden_size);
  if (variant != Variant::kGpt) return static_cast<int64_t>(8.0 / 3.0 * hidden_size);
  if (config.intermediate_size) return *config.intermediate_size;
  return static_cast<int64_t>(config.mlp_hidden_mult * hidden_size);
}

}  // namespace ddl
