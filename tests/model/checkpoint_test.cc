#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "tests/model/scratch_checkpoint.h"

namespace ddl {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::vector<fs::path> GoldenFolders() {
  std::vector<fs::path> folders;
  for (const char* set : {"tests/data/goldens", "tests/data/goldens-legacy"}) {
    for (const auto& entry : fs::directory_iterator(set)) folders.push_back(entry.path());
  }
  return folders;
}

TEST(CheckpointTest, OpensEveryGolden) {
  const std::vector<fs::path> folders = GoldenFolders();
  ASSERT_GE(folders.size(), 47u);
  std::set<Variant> variants;
  for (const fs::path& folder : folders) {
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    std::string name = folder.filename().string();
    const bool legacy = name.starts_with("legacy_");
    if (legacy) name.erase(0, 7);
    variants.insert(checkpoint->variant());
    EXPECT_EQ(VariantName(checkpoint->variant()), name.substr(0, name.find('_'))) << folder;
    EXPECT_EQ(checkpoint->legacy_cc(), legacy && name.starts_with("cc")) << folder;
    EXPECT_EQ(checkpoint->stored_type(), StoredType::kFloat32) << folder;
    EXPECT_THAT(checkpoint->warnings(), testing::IsEmpty()) << folder;
    const bool wide =
        checkpoint->variant() != Variant::kGpt && checkpoint->variant() != Variant::kVdim1;
    EXPECT_EQ(checkpoint->value_channels(), wide ? checkpoint->config().ddl_value_channels : 1);
    // Every tensor of the file is there, under today's name.
    EXPECT_EQ(checkpoint->tensors().size(), ReadTensors(folder / "model.safetensors").size());
    EXPECT_EQ(checkpoint->Has("readout.read"), wide) << folder;
  }
  EXPECT_EQ(variants.size(), 6u);
}

}  // namespace
}  // namespace ddl
