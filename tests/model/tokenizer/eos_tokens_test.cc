#include "model/tokenizer/eos_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

namespace ddl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(EosTokensTest, TheFirstFileThatNamesAnyWins) {
  struct Row {
    const char* name;
    const char* generation_config;  // null: not there
    const char* config;
    bool has_tokenizer;  // whose end of text is 2
    std::vector<TokenId> ids;
    const char* source;
    std::vector<std::string> unused;
  };
  const Row rows[] = {
      {"nothing", nullptr, nullptr, false, {}, "none", {}},
      {"only the tokenizer", nullptr, "{}", true, {2}, "tokenizer.json", {}},
      {"one id", R"({"eos_token_id": 1})", nullptr, false, {1}, "generation_config.json", {}},
      {"several ids, one twice",
       R"({"eos_token_id": [1, 3, 1]})",
       R"({"eos_token_id": 1})",
       true,
       {1, 3},
       "generation_config.json",
       {"config.json: 1", "tokenizer.json: 2"}},
      {"null names none",
       R"({"eos_token_id": null})",
       R"({"eos_token_id": 3})",
       false,
       {3},
       "config.json",
       {}},
      {"the same twice is no disagreement",
       nullptr,
       R"({"eos_token_id": 2})",
       true,
       {2},
       "config.json",
       {}},
      {"past the model's ids",
       nullptr,
       R"({"eos_token_id": 50256})",
       true,
       {2},
       "tokenizer.json",
       {"config.json: 50256 (the model has 10 ids)"}},
      {"numbers that nobody takes for ids, and one that nobody reads",
       R"({"eos_token_id": [-1, 99999999999], "temperature": NaN})",
       R"({"eos_token_id": [0, 9]})",
       false,
       {0, 9},
       "config.json",
       {"generation_config.json: -1,99999999999 (the model has 10 ids)"}},
      {"some past the model's ids",
       R"({"eos_token_id": [9, 10]})",
       nullptr,
       false,
       {9},
       "generation_config.json",
       {"generation_config.json: 10 (the model has 10 ids)"}},
  };
  for (const Row& row : rows) {
    std::string path = std::filesystem::temp_directory_path() / "eos_tokens_test.XXXXXX";
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    const std::filesystem::path folder = path;
    const auto write = [&](const char* name, const char* text) {
      if (text != nullptr) std::ofstream(folder / name) << text;
    };
    write("generation_config.json", row.generation_config);
    write("config.json", row.config);
    std::unique_ptr<const Tokenizer> tokenizer;
    if (row.has_tokenizer) {
      write("tokenizer.json",
            R"({"model": {"vocab": {"a": 0, "b": 1, "<|endoftext|>": 2}, "merges": []},
                                  "decoder": {"type": "ByteLevel"}})");
      auto loaded = Tokenizer::Load(folder);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      tokenizer = *std::move(loaded);
    }
    const auto eos = ReadEosTokens(folder, tokenizer.get(), 10);
    ASSERT_TRUE(eos.ok()) << row.name << ": " << eos.status();
    EXPECT_EQ(eos->ids, row.ids) << row.name;
    EXPECT_EQ(eos->source, row.source) << row.name;
    EXPECT_EQ(eos->unused, row.unused) << row.name;
    std::filesystem::remove_all(folder);
  }
}

TEST(EosTokensTest, FaultsAreNamed) {
  std::string path = std::filesystem::temp_directory_path() / "eos_tokens_test.XXXXXX";
  ASSERT_NE(mkdtemp(path.data()), nullptr);
  const std::filesystem::path folder = path;
  for (const char* value : {"\"a\"", "[1, null]", "[[1]]", "1.5", "{}", "NaN", "true"}) {
    std::ofstream(folder / "generation_config.json") << "{\"eos_token_id\": " << value << "}";
    const auto eos = ReadEosTokens(folder, nullptr, 10);
    EXPECT_EQ(eos.status().code(), absl::StatusCode::kInvalidArgument) << value;
    EXPECT_THAT(std::string(eos.status().message()),
                HasSubstr("generation_config.json: eos_token_id must be a token id or an array"))
        << value;
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace ddl
