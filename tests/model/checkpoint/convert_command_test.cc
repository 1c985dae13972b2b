#include "model/checkpoint/convert_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace ddl {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

// What a shell's printf writes for the words of `command`, one a line.
std::string WordsOf(const std::string& words) {
  const std::string command = "printf '%s\\n' " + words;
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string output;
  std::array<char, 256> part;
  for (size_t count; (count = fread(part.data(), 1, part.size(), pipe.get())) > 0;) {
    output.append(part.data(), count);
  }
  return output;
}

TEST(ShellWordTest, AShellTakesItForOneWord) {
  const std::vector<std::string> rows = {"plain",      "/a/b-c_d.e", "d=32,L=3", "a b",  "it's",
                                         "''",         "$HOME",      "`id`",     "a\\b", "*?[x]",
                                         "\"quoted\"", "a;b&c|d",    "#no",      "~",    "!",
                                         "\xC3\xA9",   "(x)",        "<>",       "a\tb"};
  for (const std::string& row : rows) EXPECT_EQ(WordsOf(ShellWord(row)), row + "\n");
  EXPECT_EQ(ShellWord(""), "''");
  EXPECT_EQ(ShellWord("/plain/path"), "/plain/path");
}

TEST(ConvertCommandTest, NamesSourceAndDestination) {
  const std::vector<std::pair<std::string, std::string>> rows = {
      {"models/mine", "tools/convert_checkpoint.py models/mine models/mine-converted"},
      {"models/mine/", "tools/convert_checkpoint.py models/mine models/mine-converted"},
      {"-models", "tools/convert_checkpoint.py ./-models ./-models-converted"},
      {"it's", R"(tools/convert_checkpoint.py 'it'\''s' 'it'\''s-converted')"},
  };
  for (const auto& [source, command] : rows) EXPECT_EQ(ConvertCommand(source), command);
}

TEST(ConvertCommandTest, EndsOnlyRefusalsThatItMends) {
  const absl::Status plain = absl::NotFoundError("it is gone");
  EXPECT_FALSE(IsConvertible(plain));
  EXPECT_EQ(WithConvertCommand(plain, "m"), plain);
  const absl::Status marked = Convertible(plain);
  EXPECT_TRUE(IsConvertible(marked));
  const absl::Status told = WithConvertCommand(marked, "m");
  EXPECT_EQ(told.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(told.message()), HasSubstr("it is gone\n"));
  EXPECT_THAT(std::string(told.message()),
              EndsWith("\n  tools/convert_checkpoint.py m m-converted"));
}

}  // namespace
}  // namespace ddl
