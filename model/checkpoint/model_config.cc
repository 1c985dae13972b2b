#include "model/checkpoint/model_config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/status/status.h"
#include "base/problem_list.h"
#include "base/strict_json.h"

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
constexpr const char* kRefusedKeys[] = {"n_embd",
                                        "n_embd_base",
                                        "d_ff_factor",
                                        "delta_beta_init",
                                        "delta_use_short_conv",
                                        "delta_conv_size",
                                        "delta_norm_eps",
                                        "q_rank",
                                        "rank"};

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
    if (value->is_number() && value->get<double>() >= min && value->get<double>() <= max) {
      *field = value->get<double>();
    } else {
      Refuse(key, *value, "a number from " + Number(min) + " to " + Number(max));
    }
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

  // For keys that need not be there, but must say this if they are.
  void Expect(const char* key, const Json& expected) {
    const Json* value = Find(key);
    if (value == nullptr || value->is_null() || *value == expected) return;
    Refuse(key, *value, ShowJson(expected) + ", as the official Deep Delta Learning code writes");
  }

  void Refuse(const char* key) {
    if (const Json* value = Find(key)) {
      Refuse(key, *value, "no such key; the official code refuses it too");
    }
  }

  void Refuse(const char* key, const Json& found, const std::string& allowed) {
    problems_.Add(std::string(key) + ": found " + ShowJson(found) + ", allowed is " + allowed);
  }

  const ProblemList& problems() const { return problems_; }

 private:
  const Json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() ? nullptr : &*it;
  }

  const Json& object_;
  ProblemList problems_;
};

void TakeBackbone(ConfigKeys& keys, ModelConfig& config) {
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
  keys.Take("rope_base", kMinEps, 1e30, &config.rope_base);
  keys.Take("rms_norm_eps", kMinEps, 1.0, &config.rms_norm_eps);
  keys.Take("mup", &config.mup);
  keys.Take("hidden_size_base", 1, kMaxCount, &config.hidden_size_base);
  keys.Take("intermediate_size", 1, kMaxCount, &config.intermediate_size);
  keys.Take("mlp_hidden_mult", kMinEps, 1024.0, &config.mlp_hidden_mult);
}

void TakeDelta(ConfigKeys& keys, ModelConfig& config) {
  keys.Take("ddl_k_eps", kMinEps, 1.0, &config.ddl_k_eps);
  keys.Take("ddl_beta_single_linear", &config.ddl_beta_single_linear);
  keys.Take("ddl_beta_hidden_size", 1, kMaxCount, &config.ddl_beta_hidden_size);
  keys.Take("ddl_v_sigmoid", &config.ddl_v_sigmoid);
  keys.Take("ddl_v_sigmoid_scale", -kMaxScale, kMaxScale, &config.ddl_v_sigmoid_scale);
  keys.Take("ddl_value_channels", 1, kMaxValueChannels, &config.ddl_value_channels);
  keys.Take("ddl_state_shortconv_kernel_size", 1, kMaxKernelSize,
            &config.ddl_state_shortconv_kernel_size);
  keys.Take("ddl_v_constant", &config.ddl_v_constant);
  keys.Take("ddl_v_constant_value", -kMaxScale, kMaxScale, &config.ddl_v_constant_value);
  keys.Take("ddl_v_dim1_constant", &config.ddl_v_dim1_constant);
  keys.Take("ddl_v_dim1_constant_value", -kMaxScale, kMaxScale, &config.ddl_v_dim1_constant_value);
  keys.Take("input_embed_shortconv_kernel_size", 1, kMaxKernelSize,
            &config.input_embed_shortconv_kernel_size);
  keys.Take("ddl_state_dv_shortconv_causal", &config.ddl_state_dv_shortconv_causal);
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

absl::StatusOr<ModelConfig> ModelConfig::Parse(std::string_view json, std::string_view source) {
  absl::StatusOr<Json> object = ParseJsonObject(json, source);
  if (!object.ok()) return object.status();
  ConfigKeys keys(*object);
  keys.Expect("model_type", "nanogpt-pro");
  keys.Expect("architectures", Json::array({"GPT"}));
  for (const char* key : kRefusedKeys) keys.Refuse(key);
  ModelConfig config;
  TakeBackbone(keys, config);
  TakeDelta(keys, config);
  CheckTogether(keys, config);
  if (!keys.problems().empty()) {
    return absl::InvalidArgumentError(keys.problems().Message(
        std::string(source) + " does not describe a model that can be served:"));
  }
  return config;
}

int64_t MlpWidth(const ModelConfig& config, Variant variant) {
  const auto hidden_size = static_cast<double>(config.hidden_size);
  if (variant != Variant::kGpt) return static_cast<int64_t>(8.0 / 3.0 * hidden_size);
  if (config.intermediate_size) return *config.intermediate_size;
  return static_cast<int64_t>(config.mlp_hidden_mult * hidden_size);
}

}  // namespace ddl
