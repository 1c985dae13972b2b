#include "model/checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "model/checkpoint/convert_command.h"

namespace ddl {
namespace {

using testing::HasSubstr;
using testing::Not;

absl::StatusOr<ModelConfig> Parse(const std::string& json, Variant variant = Variant::kCcec,
                                  Revision revision = Revision::k2b55f25) {
  return ModelConfig::Parse(json, "m/config.json", variant, revision);
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
    "rms_norm_eps": 1e-3, "mup": true, "hidden_size_base": 13, "ddl_k_eps": 1e-4, "ddl_beta_single_linear": false,
    "ddl_beta_hidden_size": 19, "ddl_v_sigmoid": false, "ddl_v_sigmoid_scale": 2,
    "ddl_value_channels": 6, "ddl_state_shortconv_kernel_size": 3, "ddl_v_constant": true,
    "ddl_v_constant_value": -1.5,
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
  EXPECT_EQ(config.ddl_k_eps, 1e-4);
  EXPECT_FALSE(config.ddl_beta_single_linear);
  EXPECT_EQ(config.ddl_beta_hidden_size, 19);
  EXPECT_FALSE(config.ddl_v_sigmoid);
  EXPECT_EQ(config.ddl_v_sigmoid_scale, 2.0);
  EXPECT_EQ(config.ddl_value_channels, 6);
  EXPECT_EQ(config.ddl_state_shortconv_kernel_size, 3);
  EXPECT_TRUE(config.ddl_v_constant);
  EXPECT_EQ(config.ddl_v_constant_value, -1.5);
  EXPECT_EQ(config.input_embed_shortconv_kernel_size, 8);
  EXPECT_TRUE(config.ddl_state_dv_shortconv_causal);

  const absl::StatusOr<ModelConfig> gpt =
      Parse(R"({"intermediate_size": 17, "mlp_hidden_mult": 1.5})", Variant::kGpt);
  ASSERT_TRUE(gpt.ok()) << gpt.status();
  EXPECT_EQ(gpt->intermediate_size, 17);
  EXPECT_EQ(gpt->mlp_hidden_mult, 1.5);

  const absl::StatusOr<ModelConfig> vdim1 =
      Parse(R"({"ddl_v_dim1_constant": true, "ddl_v_dim1_constant_value": 0.25})", Variant::kVdim1);
  ASSERT_TRUE(vdim1.ok()) << vdim1.status();
  EXPECT_TRUE(vdim1->ddl_v_dim1_constant);
  EXPECT_EQ(vdim1->ddl_v_dim1_constant_value, 0.25);

  const absl::StatusOr<ModelConfig> newest = Parse(
      R"({"parameterization": "completeP", "hidden_size_base": 64, "num_hidden_layers_base": 6,
          "residual_branch_mult": null})",
      Variant::kCcec, Revision::kD1f7621);
  ASSERT_TRUE(newest.ok()) << newest.status();
  EXPECT_EQ(newest->parameterization, Parameterization::kWidthAndDepth);
  EXPECT_EQ(newest->hidden_size_base, 64.0);
  EXPECT_EQ(newest->num_hidden_layers_base, 6.0);
  EXPECT_EQ(newest->residual_branch_mult, std::nullopt);
}

// The logits' scale and the updates' by what the keys of d1f7621 say together, in a model of 12
// layers and width 768.
TEST(ModelConfigTest, ScalesFollowTheParameterization) {
  struct Row {
    std::string json;
    double logits, updates;
  };
  const std::vector<Row> rows = {
      {"{}", 1.0, 1.0},
      {R"({"hidden_size_base": 96, "num_hidden_layers_base": 3})", 1.0, 1.0},
      {R"({"parameterization": null})", 1.0, 1.0},
      {R"({"parameterization": 2})", 1.0, 1.0},
      {R"({"parameterization": "other"})", 1.0, 1.0},
      // Other capitals than these are plain.
      {R"({"parameterization": "WidthMuP", "hidden_size_base": 96})", 1.0, 1.0},
      {R"({"parameterization": "CompleteP", "hidden_size_base": 96})", 1.0, 1.0},
      {R"({"parameterization": "widthmuP"})", 1024.0 / 768, 1.0},
      {R"({"parameterization": "widthmuP", "hidden_size_base": 96, "num_hidden_layers_base": 3})",
       0.125, 1.0},
      {R"({"parameterization": "widthmup", "hidden_size_base": 96.5})", 96.5 / 768, 1.0},
      {R"({"parameterization": "completeP", "hidden_size_base": 96, "num_hidden_layers_base": 3})",
       0.125, 0.25},
      {R"({"parameterization": "completep", "hidden_size_base": 96})", 0.125, 1.0},
      {R"({"parameterization": "spectralP", "num_hidden_layers_base": 24})", 1024.0 / 768, 2.0},
      {R"({"parameterization": "SpectralP", "num_hidden_layers_base": 6})", 1024.0 / 768, 0.5},
      {R"({"parameterization": "spectralp", "num_hidden_layers_base": 6})", 1024.0 / 768, 0.5},
      // An explicit multiplier goes first, everywhere, and never touches the logits.
      {R"({"residual_branch_mult": 0.7})", 1.0, 0.7},
      {R"({"residual_branch_mult": "0.7"})", 1.0, 0.7},
      {R"({"residual_branch_mult": 0.7, "parameterization": "widthmuP", "hidden_size_base": 96})",
       0.125, 0.7},
      {R"({"residual_branch_mult": 0.7, "parameterization": "completeP", "hidden_size_base": 96,
          "num_hidden_layers_base": null})",
       0.125, 0.7},
      {R"({"residual_branch_mult": null, "parameterization": "completeP", "hidden_size_base": 96,
          "num_hidden_layers_base": 3})",
       0.125, 0.25},
  };
  for (const Row& row : rows) {
    const absl::StatusOr<ModelConfig> config = Parse(row.json, Variant::kCcec, Revision::kD1f7621);
    ASSERT_TRUE(config.ok()) << row.json << "\n" << config.status();
    EXPECT_DOUBLE_EQ(LogitScale(*config), row.logits) << row.json;
    EXPECT_DOUBLE_EQ(ResidualMultiplier(*config), row.updates) << row.json;
  }
  const absl::StatusOr<ModelConfig> older = Parse(R"({"mup": true, "hidden_size_base": 96})");
  ASSERT_TRUE(older.ok()) << older.status();
  EXPECT_EQ(LogitScale(*older), 0.125);
  EXPECT_EQ(ResidualMultiplier(*older), 1.0);
}

// Each revision's code reads keys that the other's does not.
TEST(ModelConfigTest, RefusesWhatTheRevisionDoesNotDo) {
  struct Row {
    std::string json;
    Revision revision;
    std::string message;  // nothing: it passes
    bool is_convertible = false;
  };
  constexpr Revision kOld = Revision::k2b55f25, kNew = Revision::kD1f7621;
  const std::vector<Row> rows = {
      {R"({"mup": true})", kOld, ""},
      {R"({"mup": true})", Revision::kLegacy, ""},
      {R"({"mup": true})", kNew, "mup: found true, allowed is no such key in d1f7621", true},
      {R"({"mup": false})", kNew, "mup: found false", true},
      {R"({"mup": true, "head_dim": 0})", kNew, "head_dim: found 0", false},
      {R"({"parameterization": "completeP"})", kNew, ""},
      {R"({"parameterization": "completeP"})", kOld,
       R"(parameterization: found "completeP", allowed is null: the code whose tensor names these )"
       "are (2b55f25) does not read this key",
       true},
      {R"({"parameterization": "widthmuP"})", Revision::kLegacy, "(legacy) does not read", true},
      {R"({"parameterization": "anything"})", kOld, ""},
      {R"({"parameterization": "muP"})", kOld, ""},
      {R"({"parameterization": "muP"})", kNew,
       R"(parameterization: found "muP", allowed is "widthmuP")"},
      {R"({"parameterization": "mup"})", kNew, R"(parameterization: found "mup")"},
      {R"({"residual_branch_mult": 0.5})", kNew, ""},
      {R"({"residual_branch_mult": 0.5})", kOld, "residual_branch_mult: found 0.5", true},
      {R"({"residual_branch_mult": 1})", kOld, ""},
      {R"({"residual_branch_mult": 0})", kNew, "residual_branch_mult: found 0"},
      {R"({"residual_branch_mult": -1})", kNew, "residual_branch_mult: found -1"},
      {R"({"num_hidden_layers_base": 3})", kOld, ""},
      {R"({"ddl_sequence_reduction_version": 1})", kNew, ""},
      {R"({"ddl_sequence_reduction_version": 2})", kNew,
       "ddl_sequence_reduction_version: found 2, allowed is 1"},
      {R"({"ddl_sequence_reduction_version": 1.0})", kNew, "found 1.0"},
      {R"({"ddl_sequence_reduction_version": true})", kNew, "found true"},
      {R"({"ddl_sequence_reduction_version": null})", kNew, "found null"},
      {R"({"delta_qk_norm": 1})", kOld, ""},
      {R"({"delta_qk_norm": 1})", kNew, "delta_qk_norm: found 1"},
      {R"({"fast_weight_lambda": 1})", kNew, "fast_weight_lambda"},
      {R"({"fast_weight_lambda_min": 1})", kNew, ""},
      {R"({"parameterization": "widthmuP", "hidden_size_base": null})", kNew,
       "hidden_size_base: found null"},
      {R"({"parameterization": "completeP", "num_hidden_layers_base": null})", kNew,
       "num_hidden_layers_base: found null"},
      {R"({"parameterization": "completeP", "num_hidden_layers_base": 0})", kNew,
       "num_hidden_layers_base: found 0"},
      {R"({"hidden_size_base": null, "num_hidden_layers_base": null})", kNew,
       ""},  // nobody reads them
  };
  for (const Row& row : rows) {
    const absl::Status status = Parse(row.json, Variant::kCcec, row.revision).status();
    EXPECT_EQ(status.ok(), row.message.empty()) << row.json << "\n" << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(row.message)) << row.json;
    EXPECT_EQ(IsConvertible(status), row.is_convertible) << row.json;
  }
}

// Python writes numbers that JSON has not; they matter where the variant's code reads them.
TEST(ModelConfigTest, IgnoresNonFiniteNumbersInKeysThatNobodyReads) {
  struct Row {
    std::string json;
    Variant variant;
    std::string message;  // nothing: it passes
  };
  const std::vector<Row> rows = {
      {R"({"embedding_init_std": NaN, "mine": [Infinity, -Infinity, {"a": NaN}]})", Variant::kCcec,
       ""},
      {R"({"a NaN in quotes, \" Infinity": "NaN", "dropout": NaN})", Variant::kCcec, ""},
      {R"({"ddl_k_eps": NaN})", Variant::kGpt, ""},
      {R"({"ddl_k_eps": NaN})", Variant::kVdim1, R"(ddl_k_eps: found "NaN", allowed is a number)"},
      {R"({"ddl_v_constant_value": Infinity})", Variant::kVdim1, ""},
      {R"({"ddl_v_constant_value": Infinity})", Variant::kCc, R"(found "Infinity")"},
      {R"({"ddl_v_constant_value": -Infinity})", Variant::kCc, R"(found "-Infinity")"},
      {R"({"mlp_hidden_mult": NaN})", Variant::kTc, ""},
      {R"({"mlp_hidden_mult": NaN})", Variant::kGpt, "mlp_hidden_mult"},
      {R"({"vocab_size": NaN})", Variant::kGpt, "vocab_size"},
      {R"({"a": NaNa})", Variant::kGpt, "not valid JSON"},
      {R"({"a": nan})", Variant::kGpt, "not valid JSON"},
      {R"({NaN: 1})", Variant::kGpt, ""},  // as lenient as it is simple
  };
  for (const Row& row : rows) {
    const absl::Status status = Parse(row.json, row.variant).status();
    EXPECT_EQ(status.ok(), row.message.empty()) << row.json << "\n" << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(row.message)) << row.json;
  }
}

TEST(ModelConfigTest, AcceptsWhatTheOfficialCodeAccepts) {
  const std::vector<std::string> accepted = {
      R"({"q_activation": null})", R"({"q_activation": "identity"})",
      R"({"intermediate_size": null})", R"({"architectures": null, "model_type": null})",
      // Whichever class wrote it: the tensors decide.
      R"({"architectures": ["MyGPT"], "model_type": "nanogpt"})", R"({"model_type": "nanogptpro"})",
      R"({"model_type": "mine"})",
      R"({"rope_base": null, "rms_norm_eps": null, "mlp_hidden_mult": null})",
      R"({"rope_ratio": "0.5", "ddl_k_eps": "1e-6"})",  // as pydantic does
      R"({"ddl_k_eps": 0})", R"({"ddl_k_eps": -1e-5})", R"({"attention_dtype": "float32"})",
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
      {R"({"mup": NaN})", R"(mup: found "NaN", allowed is true or false)"},
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
      {R"({"rope_ratio": "1.5"})", R"(rope_ratio: found "1.5", allowed is a number from 0 to 1)"},
      {R"({"rope_ratio": "half"})", R"(rope_ratio: found "half")"},
      {R"({"rope_ratio": ""})", R"(rope_ratio: found "")"},
      {R"({"rope_ratio": "nan"})", R"(rope_ratio: found "nan")"},
      {R"({"rope_ratio": true})", "rope_ratio: found true"},
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
      {R"({"ddl_k_eps": 1e7})", "ddl_k_eps: found 10000000"},
      {R"({"ddl_value_channels": 0})", "ddl_value_channels: found 0"},
      {R"({"ddl_value_channels": 65})", "ddl_value_channels: found 65"},
      {R"({"ddl_state_shortconv_kernel_size": 0})", "ddl_state_shortconv_kernel_size: found 0"},
      {R"({"input_embed_shortconv_kernel_size": 0})", "input_embed_shortconv_kernel_size: found 0"},
      // Values.
      {R"({"q_activation": "elu"})",
       R"(q_activation: found "elu", allowed is null, "identity", "silu", "relu" or "elu+1")"},
      {R"({"k_activation": "SiLU"})", R"(k_activation: found "SiLU")"},
      {R"({"v_activation": false})", "v_activation: found false"},
      // Other models.
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
  EXPECT_THAT(
      std::string(Parse(R"({"intermediate_size": "50"})", Variant::kGpt).status().message()),
      HasSubstr(R"(intermediate_size: found "50")"));
  EXPECT_THAT(std::string(Parse(R"({"hidden_size": 10, "mlp_hidden_mult": 0.09})", Variant::kGpt)
                              .status()
                              .message()),
              HasSubstr("mlp_hidden_mult: found 0.09"));
  EXPECT_THAT(
      std::string(Parse(R"({"attention_dtype": "float16"})", Variant::kGpt).status().message()),
      HasSubstr(R"(attention_dtype: found "float16", allowed is "auto", "bfloat16" or "float32")"));
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
    const absl::StatusOr<ModelConfig> config = Parse(row.json, row.variant);
    ASSERT_TRUE(config.ok()) << row.json << "\n" << config.status();
    EXPECT_EQ(MlpWidth(*config, row.variant), row.width) << row.json;
  }
}

}  // namespace
}  // namespace ddl
