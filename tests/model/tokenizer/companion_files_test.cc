#include "model/tokenizer/companion_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/tokenizer/tokenizer.h"

namespace ddl {
namespace {

using ::testing::HasSubstr;
using Ids = std::vector<TokenId>;

// "a" to "d" are 0 to 3, "<s>" is 4, "</s>" 5, "<x>" 6; only "<s>" is listed as added, and special.
constexpr char kTokenizerJson[] = R"({
  "added_tokens": [{"id": 4, "content": "<s>", "special": true, "normalized": false}],
  "decoder": {"type": "ByteLevel"},
  "model": {"vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "<s>": 4, "</s>": 5, "<x>": 6, "<": 7, "/": 8,
                      "s": 9, "x": 10, ">": 11, "Ġ": 12}, "merges": []}})";

struct File {
  const char* name;
  std::string text;
};

class CompanionFilesTest : public ::testing::Test {
 protected:
  CompanionFilesTest() {
    std::string path = std::filesystem::temp_directory_path() / "companion_files_test.XXXXXX";
    EXPECT_NE(mkdtemp(path.data()), nullptr);
    folder_ = path;
  }
  ~CompanionFilesTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(const std::vector<File>& files) const {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
    for (const File& file : files)
      std::ofstream(folder_ / file.name, std::ios::binary) << file.text;
    return Tokenizer::Load(folder_);
  }

  std::filesystem::path folder_;
};

TEST_F(CompanionFilesTest, AddTokensAndNameThem) {
  struct Row {
    const char* name;
    std::vector<File> files;  // besides tokenizer.json
    std::string text;
    Ids ids;
    Ids with_special;             // add_special_tokens
    std::string without_special;  // decoded
    std::optional<TokenId> eos;
  };
  const Row rows[] = {
      {"none", {}, "a</s><s>", {0, 7, 8, 9, 11, 4}, {0, 7, 8, 9, 11, 4}, "a</s>", std::nullopt},
      {"the end of text",
       {{"tokenizer_config.json", R"({"eos_token": "</s>"})"}},
       "a</s><s>",
       {0, 5, 4},
       {0, 5, 4},
       "a",
       5},
      {"special_tokens_map.json wins over tokenizer_config.json",
       {{"tokenizer_config.json", R"({"eos_token": "<s>"})"},
        {"special_tokens_map.json", R"({"eos_token": {"content": "</s>", "lstrip": false}})"}},
       "a</s>",
       {0, 5},
       {0, 5},
       "a",
       5},
      {"but not over added_tokens_decoder",
       {{"tokenizer_config.json",
         R"({"eos_token": "<s>", "added_tokens_decoder": {"5": {"content": "</s>", "special": false}}})"},
        {"special_tokens_map.json", R"({"eos_token": "</s>"})"},
        {"added_tokens.json", R"({"<y>": 13})"}},
       "a</s><y>",
       {0, 5, 7, 11},
       {0, 5, 7, 11},
       "a</s><>",
       4},
      {"added_tokens_decoder changes flags, but special tokens stay special",
       {{"tokenizer_config.json",
         R"({"added_tokens_decoder": {"4": {"content": "<s>", "lstrip": true, "special": false}}})"}},
       "a <s>",
       {0, 4},
       {0, 4},
       "a",
       std::nullopt},
      {"added_tokens.json",
       {{"added_tokens.json", R"({"<y>": 13, "<s>": 4})"}},
       "<y><s>",
       {13, 4},
       {13, 4},
       "<y>",
       std::nullopt},
      {"additional special tokens",
       {{"special_tokens_map.json", R"({"additional_special_tokens": ["<x>", "</s>", "<z>"]})"}},
       "<x></s>b",
       {6, 5, 1},
       {6, 5, 1},
       "b",
       std::nullopt},
      {"extra special tokens",
       {{"tokenizer_config.json",
         R"({"extra_special_tokens": ["<x>"], "additional_special_tokens": null})"}},
       "<x>b",
       {6, 1},
       {6, 1},
       "b",
       std::nullopt},
      {"extra special tokens by name",
       {{"tokenizer_config.json", R"({"extra_special_tokens": {"image_token": "<x>"}})"}},
       "<x>b",
       {6, 1},
       {6, 1},
       "b",
       std::nullopt},
      {"bos is the post-processor's, whatever the config says",
       {{"tokenizer_config.json", R"({"bos_token": "<s>", "add_bos_token": true})"}},
       "a",
       {0},
       {0},
       "a",
       std::nullopt},
      {"also for Llama's class",
       {{"tokenizer_config.json",
         R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true,
             "tokenizer_class": "LlamaTokenizerFast"})"}},
       "a",
       {0},
       {0},
       "a",
       5},
      {"numbers that Python writes",
       {{"tokenizer_config.json", R"({"eos_token": "</s>", "model_max_length": Infinity})"}},
       "a</s>",
       {0, 5},
       {0, 5},
       "a",
       5},
  };
  for (const Row& row : rows) {
    std::vector<File> files = row.files;
    files.push_back({"tokenizer.json", kTokenizerJson});
    const auto tokenizer = Load(files);
    ASSERT_TRUE(tokenizer.ok()) << row.name << ": " << tokenizer.status();
    EXPECT_EQ((*tokenizer)->Encode(row.text, {}).value_or(Ids()), row.ids) << row.name;
    EXPECT_EQ((*tokenizer)->Encode(row.text, {.add_special_tokens = true}).value_or(Ids()),
              row.with_special)
        << row.name;
    EXPECT_EQ((*tokenizer)->Decode(row.ids, /*skip_special_tokens=*/true), row.without_special)
        << row.name;
    EXPECT_EQ((*tokenizer)->eos_token_id(), row.eos) << row.name;
  }
}

TEST_F(CompanionFilesTest, SpecialTokensBringTheirFlags) {
  const auto tokenizer = Load({{"tokenizer.json", kTokenizerJson},
                               {"special_tokens_map.json",
                                R"({"mask_token": {"content": "<x>", "lstrip": true},
                                    "bos_token": {"content": "<s>", "lstrip": true}})"}});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto tokens = (*tokenizer)->EncodeWithOffsets("a <x> <s>", {});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->size(), 3u);  // no token is a space
  EXPECT_EQ((*tokens)[1].start, 1u);
  EXPECT_EQ((*tokens)[2].start, 6u);  // tokenizer.json says more about <s>
}

TEST_F(CompanionFilesTest, SpecialTokensMayBeText) {
  const auto tokenizer =
      Load({{"tokenizer.json", kTokenizerJson}, {"added_tokens.json", R"({"ab": 13})"}});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("ab<s>", {.parse_special_tokens = false}), (Ids{13, 7, 9, 11}));
}

TEST_F(CompanionFilesTest, BosAndEosWithoutTokenizerJson) {
  struct Row {
    const char* config;
    Ids prefix;
    Ids suffix;
  };
  const Row rows[] = {
      {"{}", {}, {}},
      {R"({"bos_token": "<s>", "eos_token": "</s>"})", {}, {}},
      {R"({"bos_token": "<s>", "add_bos_token": true})", {1}, {}},
      {R"({"eos_token": "</s>", "add_eos_token": true})", {}, {3}},
      {R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true})",
       {1},
       {3}},
      {R"({"add_bos_token": true, "add_eos_token": true})", {}, {}},
  };
  for (const Row& row : rows) {
    const auto tokenizer =
        Load({{"vocab.json", R"({"a": 0, "<s>": 1, "<|endoftext|>": 2, "</s>": 3})"},
              {"merges.txt", ""},
              {"tokenizer_config.json", row.config}});
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    Ids ids = row.prefix;
    ids.push_back(0);
    ids.insert(ids.end(), row.suffix.begin(), row.suffix.end());
    EXPECT_EQ(*(*tokenizer)->Encode("a", {.add_special_tokens = true}), ids) << row.config;
    EXPECT_EQ((*tokenizer)->prefix_token_ids(), row.prefix) << row.config;
    EXPECT_EQ((*tokenizer)->suffix_token_ids(), row.suffix) << row.config;
    EXPECT_EQ((*tokenizer)->source(), "vocab.json and merges.txt");
  }
}

TEST_F(CompanionFilesTest, TheFileThatNamesTheEndOfText) {
  struct Row {
    std::vector<File> files;  // besides tokenizer.json
    std::optional<TokenId> eos;
    const char* source;
  };
  const Row rows[] = {
      {{}, std::nullopt, "tokenizer.json"},
      {{{"tokenizer_config.json", R"({"eos_token": "</s>"})"}}, 5, "tokenizer_config.json"},
      {{{"special_tokens_map.json", R"({"eos_token": "<x>"})"}}, 6, "special_tokens_map.json"},
      {{{"tokenizer_config.json", R"({"eos_token": "</s>"})"},
        {"special_tokens_map.json", R"({"bos_token": "<s>"})"}},
       5,
       "tokenizer_config.json"},
      {{{"tokenizer_config.json", R"({"eos_token": "</s>"})"},
        {"special_tokens_map.json", R"({"eos_token": "<x>"})"}},
       6,
       "special_tokens_map.json"},
  };
  for (const Row& row : rows) {
    std::vector<File> files = row.files;
    files.push_back({"tokenizer.json", kTokenizerJson});
    const auto tokenizer = Load(files);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->eos_token_id(), row.eos);
    EXPECT_EQ((*tokenizer)->eos_source(), row.source);
  }
}

TEST_F(CompanionFilesTest, FaultsAreNamed) {
  struct Row {
    File file;
    const char* message;
  };
  const Row rows[] = {
      {{"tokenizer_config.json", R"({"added_tokens_decoder": []})"},
       "tokenizer_config.json: added_tokens_decoder: must be an object"},
      {{"tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "y"}}})"},
       "added_tokens_decoder: \"x\" must be a token id"},
      {{"tokenizer_config.json", R"({"added_tokens_decoder": {"13": {}}})"},
       "added_tokens_decoder: \"13\": content must be"},
      {{"tokenizer_config.json", R"({"added_tokens_decoder": {"13": {"content": "a"}}})"},
       "\"a\" has id 13, but the vocabulary gives it id 0"},
      {{"tokenizer_config.json", R"({"eos_token": "<y>"})"},
       "tokenizer_config.json: eos_token is \"<y>\", which the vocabulary lacks"},
      {{"special_tokens_map.json", R"({"eos_token": "<y>"})"},
       "special_tokens_map.json: eos_token is \"<y>\""},
      {{"special_tokens_map.json", R"({"additional_special_tokens": "<y>"})"},
       "additional_special_tokens must be an array or an object"},
      {{"special_tokens_map.json", "["}, "special_tokens_map.json is not valid JSON"},
      {{"added_tokens.json", R"({"a": 7})"}, "added_tokens.json: \"a\" has id 7"},
      {{"added_tokens.json", R"({"y": "13"})"}, "added_tokens.json: \"y\": a token id must be"},
      {{"added_tokens.json", R"({"": 13})"}, "added_tokens.json: a token must not be empty"},
  };
  for (const Row& row : rows) {
    const auto tokenizer = Load({{"tokenizer.json", kTokenizerJson}, row.file});
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << row.file.text;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(row.message));
  }
}

TEST_F(CompanionFilesTest, OtherVocabularies) {
  // Every byte, then "ab" of rank 256, in base64.
  std::string ranks;
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (int byte = 0; byte < 256; ++byte) {
    ranks += std::string() + digits[byte >> 2] + digits[(byte & 3) << 4] +
             "== " + std::to_string(byte) + "\n";
  }
  ranks += "YWI= 256\n";
  const auto tiktoken = Load({{"r50k_base.tiktoken", ranks}});
  ASSERT_TRUE(tiktoken.ok()) << tiktoken.status();
  EXPECT_EQ(*(*tiktoken)->Encode("ab a<|endoftext|>", {}), (Ids{256, ' ', 'a', 50256}));
  EXPECT_EQ((*tiktoken)->source(), "r50k_base.tiktoken");
  EXPECT_EQ((*tiktoken)->eos_token_id(), 50256);

  const auto llama3 = Load({{"tokenizer.model", ranks}});
  ASSERT_TRUE(llama3.ok()) << llama3.status();
  EXPECT_EQ(*(*llama3)->Encode("<|eot_id|>", {}), Ids{128009});
  EXPECT_EQ((*llama3)->eos_token_id(), 128001);
  EXPECT_EQ((*llama3)->eos_source(), "tokenizer.model");

  const auto gpt2 = Load(
      {{"encoder.json", R"({"a": 0, "b": 1, "ab": 2})"}, {"vocab.bpe", "#version: 0.2\na b\n"}});
  ASSERT_TRUE(gpt2.ok()) << gpt2.status();
  EXPECT_EQ(*(*gpt2)->Encode("ab", {}), Ids{2});

  struct Row {
    std::vector<File> files;
    const char* message;
  };
  const Row rows[] = {
      {{{"mine.tiktoken", ranks}}, "the words and special tokens of \"mine\" are not known"},
      {{{"qwen.tiktoken", ranks}, {"gpt2.tiktoken", ranks}},
       "has 2 .tiktoken files (gpt2.tiktoken, qwen.tiktoken), allowed is one"},
      {{{"gpt2.tiktoken", "YWI= 0\n"}}, "no token for the byte 0x00"},
      {{{"gpt2.tiktoken", ranks + "YWI= 257\n"}}, "line 258: the token is there a second time"},
      {{{"gpt2.tiktoken", ranks + "YWM= 3\n"}}, "line 258: another token has the rank 3"},
      {{{"gpt2.tiktoken", ranks + "YWM=\n"}}, "line 258: a token is its bytes in base64"},
      {{{"gpt2.tiktoken", ranks + "YWM= -1\n"}}, "line 258: a rank must be a whole number"},
      {{{"tokenizer.model", "\n\x0E\n\x05<unk>"}}, "SentencePiece models are not supported"},
      {{{"vocab.bpe", ""}}, "encoder.json: missing, but vocab.bpe is there"},
  };
  for (const Row& row : rows) {
    const auto tokenizer = Load(row.files);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << row.message;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(row.message));
  }
}

}  // namespace
}  // namespace ddl
