#include "model/checkpoint/checkpoint_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ddl {
namespace {

using testing::HasSubstr;

constexpr CheckpointLayout kLayouts[] = {
    {Variant::kGpt, CompressLayout::kNone},    {Variant::kVdim1, CompressLayout::kNone},
    {Variant::kTc, CompressLayout::kTc},       {Variant::kTcec, CompressLayout::kTc},
    {Variant::kTc, CompressLayout::kLegacyTc}, {Variant::kTcec, CompressLayout::kLegacyTc},
    {Variant::kCc, CompressLayout::kCc},       {Variant::kCcec, CompressLayout::kCc},
    {Variant::kCc, CompressLayout::kLegacyCc}, {Variant::kCcec, CompressLayout::kLegacyCc},
};

// Counted by building the official models without memory for their weights.
TEST(CheckpointLayoutTest, CountsTheParametersOfTheOfficialModels) {
  struct Row {
    CheckpointLayout layout;
    int64_t small;
    int64_t medium;
  };
  const std::vector<Row> rows = {
      {{Variant::kGpt, CompressLayout::kNone}, 123'590'400, 353'508'352},
      {{Variant::kVdim1, CompressLayout::kNone}, 123'627'312, 353'606'752},
      {{Variant::kTc, CompressLayout::kTc}, 123'842'476, 354'164'052},
      {{Variant::kTcec, CompressLayout::kTc}, 123'854'764, 354'180'436},
      {{Variant::kTcec, CompressLayout::kLegacyTc}, 123'854'764, 354'180'436},
      {{Variant::kCc, CompressLayout::kCc}, 123'722'668, 353'856'852},
      {{Variant::kCcec, CompressLayout::kCc}, 123'734'956, 353'873'236},
      {{Variant::kCcec, CompressLayout::kLegacyCc}, 123'734'956, 353'873'236},
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
  for (const Row& row : rows) {
    EXPECT_EQ(count(small, row.layout), row.small) << VariantName(row.layout.variant);
    EXPECT_EQ(count(medium, row.layout), row.medium) << VariantName(row.layout.variant);
  }
}

TEST(CheckpointLayoutTest, DetectsTheLayoutItsOwnTablesHave) {
  ModelConfig config;
  config.num_hidden_layers = 2;
  for (const CheckpointLayout& layout : kLayouts) {
    const absl::StatusOr<CheckpointLayout> found = DetectLayout(ExpectedShapes(config, layout));
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->variant, layout.variant);
    EXPECT_EQ(found->compress, layout.compress) << VariantName(layout.variant);
  }
}

TEST(CheckpointLayoutTest, OlderTablesBecomeTodays) {
  ModelConfig config;
  config.num_hidden_layers = 2;
  const auto todays = [&](const CheckpointLayout& layout) {
    ShapesByName shapes;
    for (const auto& [name, shape] : ExpectedShapes(config, layout)) {
      shapes[TodaysName(name, layout)] = TodaysShape(name, shape, layout);
    }
    return shapes;
  };
  for (const CheckpointLayout& layout : kLayouts) {
    CheckpointLayout today = layout;
    if (layout.compress == CompressLayout::kLegacyTc) today.compress = CompressLayout::kTc;
    if (layout.compress == CompressLayout::kLegacyCc) today.compress = CompressLayout::kCc;
    EXPECT_EQ(todays(layout), ExpectedShapes(config, today)) << VariantName(layout.variant);
  }
}

TEST(CheckpointLayoutTest, ChecksKernelAndChannelsTogether) {
  struct Row {
    CompressLayout compress;
    int64_t dv;
    std::optional<int64_t> kernel;
    std::string message;  // nothing: it passes
  };
  const std::vector<Row> rows = {
      {CompressLayout::kCc, 4, std::nullopt, ""},
      {CompressLayout::kCc, 4, 4, ""},
      {CompressLayout::kCc, 64, std::nullopt, ""},
      {CompressLayout::kCc, 4, 3, "ddl_state_shortconv_kernel_size: found 3"},
      {CompressLayout::kCc, 4, 5, "is only ddl_value_channels, 4"},
      {CompressLayout::kCc, 1, std::nullopt, "ddl_value_channels: found 1"},
      {CompressLayout::kLegacyCc, 4, 1, ""},
      {CompressLayout::kLegacyCc, 4, 4, ""},
      {CompressLayout::kLegacyCc, 4, 5, "is at most ddl_value_channels, 4"},
      {CompressLayout::kTc, 2, 1, ""},
      {CompressLayout::kTc, 2, 9, ""},
      {CompressLayout::kTc, 1, 4, "ddl_value_channels: found 1"},
      {CompressLayout::kLegacyTc, 2, 9, ""},
      {CompressLayout::kNone, 1, 9, ""},
  };
  for (const Row& row : rows) {
    ModelConfig config;
    config.ddl_value_channels = row.dv;
    config.ddl_state_shortconv_kernel_size = row.kernel;
    const absl::Status status = CheckSizes(config, {Variant::kCc, row.compress});
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
