#include "bench/token_lengths.h"

#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ddl::bench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Key;

// Every length that comes up in many samples.
std::map<int32_t, int> SampledLengths(const TokenLengths& lengths) {
  std::mt19937_64 random(1);
  std::map<int32_t, int> counts;
  for (int i = 0; i < 3000; ++i) ++counts[lengths.Sample(random)];
  return counts;
}

std::string WriteFile(const std::string& name, const std::string& content) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path) << content;
  return path;
}

TEST(TokenLengthsTest, Fixed) {
  const auto lengths = TokenLengths::Parse("17");
  ASSERT_TRUE(lengths.ok()) << lengths.status();
  EXPECT_THAT(SampledLengths(*lengths), ElementsAre(Key(17)));
  EXPECT_EQ(lengths->longest(), 17);
}

TEST(TokenLengthsTest, UniformWithBothEnds) {
  const auto lengths = TokenLengths::Parse("1..3");
  ASSERT_TRUE(lengths.ok()) << lengths.status();
  const std::map<int32_t, int> counts = SampledLengths(*lengths);
  EXPECT_THAT(counts, ElementsAre(Key(1), Key(2), Key(3)));
  for (const auto& [length, count] : counts) EXPECT_NEAR(count, 1000, 150) << length;
  EXPECT_EQ(lengths->longest(), 3);
}

TEST(TokenLengthsTest, FromAFile) {
  const std::string path = WriteFile("lengths", "# prompts\n5\n\n 80 \n80\n");
  const auto lengths = TokenLengths::Parse(absl::StrCat("@", path));
  ASSERT_TRUE(lengths.ok()) << lengths.status();
  const std::map<int32_t, int> counts = SampledLengths(*lengths);
  EXPECT_THAT(counts, ElementsAre(Key(5), Key(80)));
  EXPECT_NEAR(counts.at(80), 2000, 150);  // it stands there twice
  EXPECT_EQ(lengths->longest(), 80);
}

TEST(TokenLengthsTest, Refused) {
  struct Row {
    std::string text;
    std::string message;
  };
  const std::vector<Row> rows = {
      {"", "not ''"},
      {"0", "not '0'"},
      {"-3", "not '-3'"},
      {"12x", "not '12x'"},
      {"5..", "not '5..'"},
      {"..5", "not '..5'"},
      {"6..5", "not '6..5'"},
      {"0..5", "not '0..5'"},
      {"99999999999", "not '99999999999'"},
      {"@/nowhere/lengths", "cannot read '/nowhere/lengths'"},
      {absl::StrCat("@", WriteFile("empty", "# nothing\n")), "holds no length"},
      {absl::StrCat("@", WriteFile("wrong", "4\nfive\n")), "wrong:2: 'five'"},
      {absl::StrCat("@", WriteFile("zero", "0\n")), "zero:1: '0'"},
  };
  for (const Row& row : rows) {
    const auto lengths = TokenLengths::Parse(row.text);
    ASSERT_FALSE(lengths.ok()) << row.text;
    EXPECT_THAT(std::string(lengths.status().message()), HasSubstr(row.message)) << row.text;
  }
}

}  // namespace
}  // namespace ddl::bench
