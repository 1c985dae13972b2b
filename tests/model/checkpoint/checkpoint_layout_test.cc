#include "model/checkpoint/checkpoint_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ddl {
namespace {

using testing::HasSubstr;

// But for legacy gpt and vdim1, which are as 2b55f25's.
std::vector<CheckpointLayout> AllLayouts() {
  std::vector<CheckpointLayout> layouts;
  for (const Variant variant : {Variant::kGpt, Variant::kVdim1, Variant::kTc, Variant::kTcec,
                                Variant::kCc, Variant::kCcec}) {
    if (variant != Variant::kGpt && variant != Variant::kVdim1) {
      layouts.push_back({variant, Revision::kLegacy});
    }
    layouts.push_back({variant, Revision::k2b55f25});
    layouts.push_back({variant, Revision::kD1f7621});
  }
  return layouts;
}

std::string Shown(const CheckpointLayout& layout) {
  return std::string(VariantName(layout.variant)) + " of " +
         std::string(RevisionName(layout.revision));
}

// Counted by building the official models without memory for their weights.
TEST(CheckpointLayoutTest, CountsTheParametersOfTheOfficialModels) {
  struct Row {
    Variant variant;
    int64_t small;
    int64_t medium;
  };
  const std::vector<Row> rows = {
      {Variant::kGpt, 123'590'400, 353'508'352}, {Variant::kVdim1, 123'627'312, 353'606'752},
      {Variant::kTc, 123'842'476, 354'164'052},  {Variant::kTcec, 123'854'764, 354'180'436},
      {Variant::kCc, 123'722'668, 353'856'852},  {Variant::kCcec, 123'734'956, 353'873'236},
  };
  const auto count = [](const ModelConfig& config, const CheckpointLayout& layout) {
    int64_t total = 0;
    for (const auto& [name, shape] : ExpectedShapes(config, layout)) {
      int64_t product = 1;
      for (const int64_t size : shape) product *= size;
      total += product;
    }
    return total;
  };
  const ModelConfig small;
  ModelConfig medium;
  medium.num_hidden_layers = 24;
  medium.num_attention_heads = 8;
  medium.hidden_size = 1024;
  for (const CheckpointLayout& layout : AllLayouts()) {
    const Row& row = rows[static_cast<size_t>(layout.variant)];
    ASSERT_EQ(row.variant, layout.variant);
    EXPECT_EQ(count(small, layout), row.small) << Shown(layout);
    EXPECT_EQ(count(medium, layout), row.medium) << Shown(layout);
  }
}

TEST(CheckpointLayoutTest, DetectsTheLayoutItsOwnTablesHave) {
  ModelConfig config;
  config.num_hidden_layers = 2;
  for (const CheckpointLayout& layout : AllLayouts()) {
    const absl::StatusOr<CheckpointLayout> found = DetectLayout(ExpectedShapes(config, layout));
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, layout) << Shown(layout);
  }
}

TEST(CheckpointLayoutTest, DetectsTheLayoutFromWhatTensorsThereAre) {
  struct Row {
    std::string name;
    ShapesByName shapes;
    CheckpointLayout layout;
  };
  const std::string layer = "transformer.h.0.";
  const std::vector<Row> rows = {
      {"nothing", {}, {Variant::kGpt, Revision::kD1f7621}},
      {"another family's",
       {{"model.layers.0.mlp.down_proj.weight", {4, 8}}},
       {Variant::kGpt, Revision::kD1f7621}},
      {"an old output",
       {{layer + "mlp.c_proj.weight", {4, 8}}},
       {Variant::kGpt, Revision::k2b55f25}},
      {"a new output",
       {{layer + "mlp.o_proj.weight", {4, 8}}},
       {Variant::kGpt, Revision::kD1f7621}},
      // compress.weight alone does not mean CC: rank 3 is TC of the newest revision.
      {"rank 3", {{layer + "compress.weight", {4, 2, 3}}}, {Variant::kTc, Revision::kD1f7621}},
      {"rank 2", {{layer + "compress.weight", {4, 2}}}, {Variant::kCc, Revision::kD1f7621}},
      {"rank 2 and an old output",
       {{layer + "compress.weight", {4, 2}}, {layer + "attn.c_proj.weight", {4, 4}}},
       {Variant::kCc, Revision::k2b55f25}},
      {"no rank of any", {{"readout.weight", {4}}}, {Variant::kCc, Revision::kD1f7621}},
      {"no rank of any and an old output",
       {{"readout.weight", {4}}, {layer + "attn.c_proj.weight", {4, 4}}},
       {Variant::kCc, Revision::k2b55f25}},
      {"the head's compressor",
       {{"readout.weight", {4, 2, 3}}},
       {Variant::kTc, Revision::kD1f7621}},
      {"an expansion and rank 3",
       {{"readout.weight", {4, 2, 3}}, {"input_embed.weight", {4, 2, 3}}},
       {Variant::kTcec, Revision::kD1f7621}},
      {"an old expansion and rank 2",
       {{"readout.weight", {4, 2}}, {"input_embed.conv.weight", {8, 1, 3}}},
       {Variant::kCcec, Revision::k2b55f25}},
      {"shortconv of rank 2",
       {{"readout.shortconv.weight", {8, 3}}},
       {Variant::kTc, Revision::k2b55f25}},
      {"shortconv of rank 3",
       {{"readout.shortconv.weight", {4, 1, 3}}},
       {Variant::kCc, Revision::kLegacy}},
      {"shortconv.conv",
       {{"readout.shortconv.conv.weight", {8, 1, 3}}},
       {Variant::kTc, Revision::kLegacy}},
  };
  for (const Row& row : rows) {
    const absl::StatusOr<CheckpointLayout> found = DetectLayout(row.shapes);
    ASSERT_TRUE(found.ok()) << row.name << "\n" << found.status();
    EXPECT_EQ(*found, row.layout) << row.name << ": " << Shown(*found);
  }
}

TEST(CheckpointLayoutTest, EveryRevisionsTableBecomesTheServersOwn) {
  ModelConfig config;
  config.num_hidden_layers = 2;
  const auto own = [&](const CheckpointLayout& layout) {
    ShapesByName shapes;
    for (const auto& [name, shape] : ExpectedShapes(config, layout)) {
      shapes[OwnName(name, layout)] = OwnShape(name, shape, layout);
    }
    return shapes;
  };
  for (const CheckpointLayout& layout : AllLayouts()) {
    EXPECT_EQ(own(layout), ExpectedShapes(config, {layout.variant, Revision::k2b55f25}))
        << Shown(layout);
  }
}

TEST(CheckpointLayoutTest, ChecksKernelAndChannelsTogether) {
  struct Row {
    CheckpointLayout layout;
    int64_t dv;
    std::optional<int64_t> kernel;
    std::string message;  // nothing: it passes
  };
  const CheckpointLayout gpt = {Variant::kGpt, Revision::k2b55f25};
  const CheckpointLayout tc = {Variant::kTc, Revision::k2b55f25};
  const CheckpointLayout cc = {Variant::kCc, Revision::k2b55f25};
  const CheckpointLayout legacy_tc = {Variant::kTc, Revision::kLegacy};
  const CheckpointLayout legacy_cc = {Variant::kCc, Revision::kLegacy};
  const CheckpointLayout new_tc = {Variant::kTcec, Revision::kD1f7621};
  const CheckpointLayout new_cc = {Variant::kCcec, Revision::kD1f7621};
  const std::vector<Row> rows = {
      {cc, 4, std::nullopt, ""},
      {cc, 4, 4, ""},
      {cc, 64, std::nullopt, ""},
      {cc, 4, 3, "ddl_state_shortconv_kernel_size: found 3"},
      {cc, 4, 5, "is only ddl_value_channels, 4"},
      {cc, 1, std::nullopt, "ddl_value_channels: found 1"},
      {legacy_cc, 4, 1, ""},
      {legacy_cc, 4, 4, ""},
      {legacy_cc, 4, 5, "is at most ddl_value_channels, 4"},
      {new_cc, 8, std::nullopt, ""},
      {new_cc, 4, 1, ""},
      {new_cc, 4, 4, ""},
      {new_cc, 4, 5, "(variant ccec, d1f7621) is at most ddl_value_channels, 4"},
      {tc, 2, 1, ""},
      {tc, 2, 9, ""},
      {tc, 1, 4, "ddl_value_channels: found 1"},
      {legacy_tc, 2, 9, ""},
      {new_tc, 2, 1, ""},
      {new_tc, 2, 9, ""},
      {gpt, 1, 9, ""},
  };
  for (const Row& row : rows) {
    ModelConfig config;
    config.ddl_value_channels = row.dv;
    config.ddl_state_shortconv_kernel_size = row.kernel;
    const absl::Status status = CheckSizes(config, row.layout);
    const std::string shown =
        "dv " + std::to_string(row.dv) + ", kernel " + std::to_string(row.kernel.value_or(-1));
    EXPECT_EQ(status.ok(), row.message.empty()) << shown << "\n" << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(row.message)) << shown;
  }
}

TEST(CheckpointLayoutTest, TakesTheLayerIndexFromNamesOfLayersOnly) {
  const std::vector<std::pair<std::string, std::optional<int64_t>>> rows = {
      {"transformer.h.0.ln_1.weight", 0},
      {"transformer.h.12.x", 12},
      {"transformer.h.12.", 12},
      {"transformer.h.12", std::nullopt},
      {"transformer.h.", std::nullopt},
      {"transformer.h..x", std::nullopt},
      {"transformer.h.-1.x", std::nullopt},
      {"transformer.h.+1.x", std::nullopt},
      {"transformer.h.01.x", std::nullopt},
      {"transformer.h.1x.x", std::nullopt},
      {"transformer.h.99999999999999999999.x", std::nullopt},
      {"h.0.ln_1.weight", std::nullopt},
      {"", std::nullopt},
  };
  for (const auto& [name, index] : rows) EXPECT_EQ(LayerIndex(name), index) << name;
}

}  // namespace
}  // namespace ddl
