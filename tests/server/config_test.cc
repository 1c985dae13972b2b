#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace ddl {
namespace {

using ::testing::HasSubstr;

TEST(ParseModelSourcesTest, Accepts) {
  struct Row {
    const char* text;
    std::vector<std::pair<std::string, std::string>> expected;  // name, folder
  };
  const Row rows[] = {
      {"/models/demo", {{"demo", "/models/demo"}}},
      {"/models/demo/", {{"demo", "/models/demo/"}}},
      {"/models/demo/.", {{"demo", "/models/demo/."}}},
      {"demo", {{"demo", "demo"}}},
      {"a=/models/demo", {{"a", "/models/demo"}}},
      {"a=models/x=y", {{"a", "models/x=y"}}},
      {"/models/x=y/demo", {{"demo", "/models/x=y/demo"}}},
      {"a=/m/1,/m/two,c=/m/3", {{"a", "/m/1"}, {"two", "/m/two"}, {"c", "/m/3"}}},
      {"ddl-124M_v1.2:best@home+1=/m", {{"ddl-124M_v1.2:best@home+1", "/m"}}},
  };
  for (const Row& row : rows) {
    const auto models = ParseModelSources(row.text);
    ASSERT_TRUE(models.ok()) << row.text << ": " << models.status();
    ASSERT_EQ(models->size(), row.expected.size()) << row.text;
    for (size_t i = 0; i < models->size(); ++i) {
      EXPECT_EQ((*models)[i].name, row.expected[i].first) << row.text;
      EXPECT_EQ((*models)[i].folder, row.expected[i].second) << row.text;
    }
  }
}

// A value that as a whole names a folder is that folder, and so is what follows NAME=.
TEST(ParseModelSourcesTest, TakesFoldersWithSeparatorsInTheirNames) {
  const std::filesystem::path root =
      std::filesystem::path(testing::TempDir()) / ("models-" + std::to_string(getpid()));
  struct Row {
    std::string folder, prefix;
    std::string name;  // expected
  };
  const std::vector<Row> rows = {
      {"d=768,L=12", "", "d_768_L_12"},
      {"d=768,L=12", "best=", "best"},
      {"a,b", "", "a_b"},
      {"my model", "", "my_model"},
      {"it's", "x=", "x"},
      {"unknown", "u=", "u"},
      {"plain", "", "plain"},
      {"\xC3\xA9t\xC3\xA9", "", "__t__"},
  };
  for (const Row& row : rows) {
    const std::filesystem::path folder = root / row.folder;
    std::filesystem::create_directories(folder);
    const auto models = ParseModelSources(row.prefix + folder.string());
    ASSERT_TRUE(models.ok()) << row.folder << ": " << models.status();
    ASSERT_EQ(models->size(), 1u) << row.folder;
    EXPECT_EQ((*models)[0].name, row.name) << row.folder;
    EXPECT_EQ((*models)[0].folder, folder.string()) << row.folder;
  }
  // Two that are there, and none that is both.
  const auto two = ParseModelSources((root / "plain").string() + "," + (root / "a").string());
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->size(), 2u);
  std::filesystem::remove_all(root);
}

TEST(ParseModelSourcesTest, NamesTheFolderItRunsIn) {
  const auto models = ParseModelSources(".");
  ASSERT_TRUE(models.ok()) << models.status();
  EXPECT_EQ((*models)[0].name, std::filesystem::current_path().filename().string());
}

TEST(ParseModelSourcesTest, Refuses) {
  for (const char* text : {"", ",", "a=", "=/m", "/m/a,/n/a", "a=/m,a=/n", "/", "unknown=/m",
                           "my model=/m", "/m/my model", "a=/m,,b=/n"}) {
    const auto models = ParseModelSources(text);
    ASSERT_FALSE(models.ok()) << text;
    EXPECT_THAT(std::string(models.status().message()), HasSubstr("--model")) << text;
  }
}

}  // namespace
}  // namespace ddl
