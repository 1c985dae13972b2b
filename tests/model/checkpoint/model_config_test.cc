#include "model/checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ddl {
namespace {

using testing::HasSubstr;
using testing::Not;

absl::StatusOr<ModelConfig> Parse(const std::string& json) {
  return ModelConfig::Parse(json, "m/config.json");
}

TEST(ModelConfigTest, AnEmptyObjectGivesTheOfficialDefaults) {
  const absl::StatusOr<ModelConfig> config = Parse("{}");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->vocab_size, 50304);
  EXPECT_EQ(config->num_hidden_layers, 12);
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_TRUE(config->use_qk_rmsnorm);
  EXPECT_FALSE(config->mup);
  EXPECT_EQ(config->q_activation, Activation::kIdentity);
  EXPECT_EQ(config->ddl_v_sigmoid_scale, 4.0);
  EXPECT_EQ(config->ddl_state_shortconv_kernel_size, std::nullopt);
}

TEST(ModelConfigTest, EveryFieldComesFromItsOwnKey) {
  const absl::StatusOr<ModelConfig> parsed = Parse(R"({
    "model_type": "nanogpt-pro", "architectures": ["GPT"], "unknown_key": {"kept": [1]},
    "vocab_size": 101, "num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 5,
    "head_dim": 7, "block_size": 11, "using_groupnorm": true, "use_output_gate": true,
    "use_qk_rmsnorm": false, "use_k_shift": true, "use_v_shift": true, "q_activation": "silu",
    "k_activation": "relu", "v_activation": "elu+1", "rope_ratio": 0.5, "rope_base": 500,
    "rms_norm_eps": 1e-3, "mup": true, "hidden_size_base": 13, "intermediate_size": 17,
    "mlp_hidden_mult": 1.5, "ddl_k_eps": 1e-4, "ddl_beta_single_linear": false,
    "ddl_beta_hidden_size": 19, "ddl_v_sigmoid": false, "ddl_v_sigmoid_scale": 2,
    "ddl_value_channels": 6, "ddl_state_shortconv_kernel_size": 3, "ddl_v_constant": true,
    "ddl_v_constant_value": -1.5, "ddl_v_dim1_constant": true, "ddl_v_dim1_constant_value": 0.25,
    "input_embed_shortconv_kernel_size": 8, "ddl_state_dv_shortconv_causal": true})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const ModelConfig& config = *parsed;
  EXPECT_EQ(config.vocab_size, 101);
  EXPECT_EQ(config.num_hidden_layers, 2);
  EXPECT_EQ(config.num_attention_heads, 3);
  EXPECT_EQ(config.hidden_size, 5);
  EXPECT_EQ(config.head_dim, 7);
  EXPECT_EQ(config.block_size, 11);
  EXPECT_TRUE(config.using_groupnorm);
  EXPECT_TRUE(config.use_output_gate);
  EXPECT_FALSE(config.use_qk_rmsnorm);
  EXPECT_TRUE(config.use_k_shift);
  EXPECT_TRUE(config.use_v_shift);
  EXPECT_EQ(config.q_activation, Activation::kSilu);
  EXPECT_EQ(config.k_activation, Activation::kRelu);
  EXPECT_EQ(config.v_activation, Activation::kElu1);
  EXPECT_EQ(config.rope_ratio, 0.5);
  EXPECT_EQ(config.rope_base, 500.0);
  EXPECT_EQ(config.rms_norm_eps, 1e-3);
  EXPECT_TRUE(config.mup);
  EXPECT_EQ(config.hidden_size_base, 13);
  EXPECT_EQ(config.intermediate_size, 17);
  EXPECT_EQ(config.mlp_hidden_mult, 1.5);
  EXPECT_EQ(config.ddl_k_eps, 1e-4);
  EXPECT_FALSE(config.ddl_beta_single_linear);
  EXPECT_EQ(config.ddl_beta_hidden_size, 19);
  EXPECT_FALSE(config.ddl_v_sigmoid);
  EXPECT_EQ(config.ddl_v_sigmoid_scale, 2.0);
  EXPECT_EQ(config.ddl_value_channels, 6);
  EXPECT_EQ(config.ddl_state_shortconv_kernel_size, 3);
  EXPECT_TRUE(config.ddl_v_constant);
  EXPECT_EQ(config.ddl_v_constant_value, -1.5);
  EXPECT_TRUE(config.ddl_v_dim1_constant);
  EXPECT_EQ(config.ddl_v_dim1_constant_value, 0.25);
  EXPECT_EQ(config.input_embed_shortconv_kernel_size, 8);
  EXPECT_TRUE(config.ddl_state_dv_shortconv_causal);
}

TEST(ModelConfigTest, AcceptsWhatTheOfficialCodeAccepts) {
  const std::vector<std::string> accepted = {
      R"({"q_activation": null})", R"({"q_activation": "identity"})",
      R"({"intermediate_size": null})", R"({"architectures": null, "model_type": null})",
      R"({"rope_ratio": 0})", R"({"rope_ratio": 1})", R"({"ddl_v_sigmoid_scale": -4})",
      R"({"head_dim": 1, "num_attention_heads": 1, "hidden_size": 1, "vocab_size": 1})",
      // Only training reads these.
      R"({"bias": "maybe", "dropout": -1, "ddl_beta_init": "x", "embedding_init_std": null})",
      R"({"dtype": "float32", "torch_dtype": "bfloat16", "tie_word_embeddings": false})",
      R"({"unknown": [[[]]], "": 1})",
      "\xEF\xBB\xBF{}",  // a byte order mark
  };
  for (const std::string& json : accepted) {
    const absl::StatusOr<ModelConfig> config = Parse(json);
    EXPECT_TRUE(config.ok()) << json << "\n" << config.status();
  }
}

TEST(ModelConfigTest, RefusesWithTheKeyWhatWasFoundAndWhatIsAllowed) {
  struct Row {
    std::string json;
    std::string message;
  };
  const std::string deep = R"({"a": )" + std::string(100000, '[') + std::string(100000, ']') + "}";
  const std::vector<Row> rows = {
      // Not an object.
      {"", "not valid JSON"},
      {"{", "not valid JSON"},
      {R"({"mup": true,})", "line 1"},
      {R"({"mup": NaN})", "not valid JSON"},
      {R"({"mup": 1e999})", "not valid JSON"},
      {"{\"mup\": \"\xff\"}", "not valid JSON"},
      {"[1, 2]", "not a JSON object, found [1,2]"},
      {"null", "not a JSON object, found null"},
      {R"({"mup": true, "mup": true})", R"(the key "mup" appears twice)"},
      {deep, "nests deeper than 32"},
      // Types are strict.
      {R"({"mup": "true"})", R"(mup: found "true", allowed is true or false)"},
      {R"({"mup": 1})", "mup: found 1, allowed is true or false"},
      {R"({"mup": null})", "mup: found null, allowed is true or false"},
      {R"({"hidden_size": 32.0})", "hidden_size: found 32.0, allowed is an integer from 1 to"},
      {R"({"hidden_size": "32"})", R"(hidden_size: found "32", allowed is an integer)"},
      {R"({"hidden_size": true})", "hidden_size: found true, allowed is an integer"},
      {R"({"hidden_size": null})", "hidden_size: found null, allowed is an integer"},
      {R"({"hidden_size": {"a": 1}})", "hidden_size: found an object"},
      {R"({"rope_ratio": "1.0"})", R"(rope_ratio: found "1.0", allowed is a number from 0 to 1)"},
      {R"({"rope_ratio": true})", "rope_ratio: found true"},
      {R"({"intermediate_size": "50"})", R"(intermediate_size: found "50")"},
      // Ranges.
      {R"({"head_dim": 0})", "head_dim: found 0, allowed is an integer from 1 to 1048576"},
      {R"({"num_hidden_layers": 0})", "num_hidden_layers: found 0"},
      {R"({"num_hidden_layers": 4097})", "num_hidden_layers: found 4097"},
      {R"({"num_hidden_layers": -3})", "num_hidden_layers: found -3"},
      {R"({"vocab_size": 9223372036854775807})", "vocab_size: found 9223372036854775807"},
      {R"({"vocab_size": 18446744073709551615})", "vocab_size: found 18446744073709551615"},
      {R"({"vocab_size": 99999999999999999999999})", "vocab_size: found 9.99"},
      {R"({"num_attention_heads": 4096, "head_dim": 4096})",
       "at most 1048576 for num_attention_heads times head_dim, which is 16777216"},
      {R"({"rope_ratio": 1.0001})", "rope_ratio: found 1.0001"},
      {R"({"rope_ratio": -0.1})", "rope_ratio: found -0.1"},
      {R"({"rope_base": 0})", "rope_base: found 0"},
      {R"({"rms_norm_eps": 0.0})", "rms_norm_eps: found 0.0"},
      {R"({"ddl_k_eps": -1e-5})", "ddl_k_eps: found -1e-05"},
      {R"({"ddl_value_channels": 0})", "ddl_value_channels: found 0"},
      {R"({"ddl_value_channels": 65})", "ddl_value_channels: found 65"},
      {R"({"ddl_state_shortconv_kernel_size": 0})", "ddl_state_shortconv_kernel_size: found 0"},
      {R"({"input_embed_shortconv_kernel_size": 0})", "input_embed_shortconv_kernel_size: found 0"},
      {R"({"hidden_size": 10, "mlp_hidden_mult": 0.09})", "mlp_hidden_mult: found 0.09"},
      // Values.
      {R"({"q_activation": "elu"})",
       R"(q_activation: found "elu", allowed is null, "identity", "silu", "relu" or "elu+1")"},
      {R"({"k_activation": "SiLU"})", R"(k_activation: found "SiLU")"},
      {R"({"v_activation": false})", "v_activation: found false"},
      // Other models.
      {R"({"model_type": "llama"})", R"(model_type: found "llama", allowed is "nanogpt-pro")"},
      {R"({"architectures": ["LlamaForCausalLM"]})",
       R"(architectures: found ["LlamaForCausalLM"], allowed is ["GPT"])"},
      {R"({"n_embd": 768})", "n_embd: found 768, allowed is no such key"},
      {R"({"n_embd_base": 1})", "n_embd_base"},
      {R"({"d_ff_factor": 1})", "d_ff_factor"},
      {R"({"delta_beta_init": 1})", "delta_beta_init"},
      {R"({"delta_use_short_conv": 1})", "delta_use_short_conv"},
      {R"({"delta_conv_size": 1})", "delta_conv_size"},
      {R"({"delta_norm_eps": 1})", "delta_norm_eps"},
      {R"({"q_rank": 1})", "q_rank"},
      {R"({"rank": null})", "rank: found null"},
  };
  for (const Row& row : rows) {
    const std::string shown = row.json.substr(0, 100);
    const absl::StatusOr<ModelConfig> config = Parse(row.json);
    ASSERT_FALSE(config.ok()) << shown;
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << shown;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(row.message)) << shown;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("m/config.json")) << shown;
    EXPECT_LT(config.status().message().size(), 1000) << shown;
  }
}

TEST(ModelConfigTest, OneMessageNamesEveryBadKey) {
  const absl::StatusOr<ModelConfig> config =
      Parse(R"({"head_dim": 0, "mup": "yes", "q_activation": "gelu", "n_embd": 4, "rank": 1})");
  ASSERT_FALSE(config.ok());
  for (const char* key : {"head_dim", "mup", "q_activation", "n_embd", "rank"}) {
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(std::string(key) + ": found"));
  }
}

// What a file holds must not act on the terminal that shows the message.
TEST(ModelConfigTest, MessagesHoldNoControlCharacters) {
  for (const std::string json : {"{\"mup\": \"\\u001b[31m\\n\"}", "{\"mup\": \x1b[31m}"}) {
    const absl::StatusOr<ModelConfig> config = Parse(json);
    ASSERT_FALSE(config.ok());
    EXPECT_THAT(std::string(config.status().message()), Not(HasSubstr("\x1b"))) << json;
  }
}

TEST(ModelConfigTest, MlpWidthRoundsDown) {
  struct Row {
    std::string json;
    Variant variant;
    int64_t width;
  };
  const std::vector<Row> rows = {
      {R"({"hidden_size": 768})", Variant::kCcec, 2048},
      {R"({"hidden_size": 1024})", Variant::kCcec, 2730},
      {R"({"hidden_size": 1024})", Variant::kGpt, 2730},
      {R"({"hidden_size": 32})", Variant::kVdim1, 85},
      {R"({"hidden_size": 1})", Variant::kTc, 2},
      {R"({"hidden_size": 32, "mlp_hidden_mult": 1.7})", Variant::kGpt, 54},
      {R"({"hidden_size": 32, "mlp_hidden_mult": 1.7})", Variant::kCc, 85},
      {R"({"hidden_size": 32, "mlp_hidden_mult": 1.7, "intermediate_size": 50})", Variant::kGpt,
       50},
      {R"({"hidden_size": 32, "intermediate_size": 50})", Variant::kTcec, 85},
  };
  for (const Row& row : rows) {
    const absl::StatusOr<ModelConfig> config = Parse(row.json);
    ASSERT_TRUE(config.ok()) << row.json << "\n" << config.status();
    EXPECT_EQ(MlpWidth(*config, row.variant), row.width) << row.json;
  }
}

}  // namespace
}  // namespace ddl
