#include "model/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "nlohmann/json.hpp"

namespace ddl {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<TokenId>;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// GPT-2's printable character for a byte, as vocabularies write it.
std::string Written(uint8_t byte) {
  static const std::vector<std::string>& characters = *new std::vector<std::string>([] {
    std::vector<std::string> result;
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
      const int c = printable ? byte : next++;
      result.push_back(c < 0x80 ? std::string(1, static_cast<char>(c))
                                : std::string{static_cast<char>(0xC0 | c >> 6),
                                              static_cast<char>(0x80 | (c & 0x3F))});
    }
    return result;
  }());
  return characters[byte];
}

// Ids 0 to 255 are the bytes; then " t", "he", " the", "<|endoftext|>" and "<s>".
constexpr TokenId kSpaceT = 256;
constexpr TokenId kHe = 257;
constexpr TokenId kSpaceThe = 258;
constexpr TokenId kEndOfText = 259;
constexpr TokenId kStart = 260;

Json SmallTokenizer() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[Written(static_cast<uint8_t>(byte))] = byte;
  vocab["Ġt"] = kSpaceT;
  vocab["he"] = kHe;
  vocab["Ġthe"] = kSpaceThe;
  const auto special = [](TokenId id, const char* content) {
    return Json{{"id", id},        {"content", content}, {"special", true},
                {"lstrip", false}, {"rstrip", false},    {"normalized", false}};
  };
  return {
      {"version", "1.0"},
      {"added_tokens", {special(kEndOfText, "<|endoftext|>"), special(kStart, "<s>")}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"Ġ t", "h e", Json{"Ġt", "he"}}}}},
  };
}

const char kTemplate[] = R"({"type": "TemplateProcessing",
  "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
             {"SpecialToken": {"id": "end", "type_id": 0}}],
  "special_tokens": {"<s>": {"id": "<s>", "ids": [260], "tokens": ["<s>"]},
                     "end": {"id": "end", "ids": [259, 259], "tokens": ["a", "a"]}}})";

// A checkpoint's folder, for the length of a test.
class TokenizerTest : public ::testing::Test {
 protected:
  TokenizerTest() {
    std::string path = std::filesystem::temp_directory_path() / "tokenizer_test.XXXXXX";
    EXPECT_NE(mkdtemp(path.data()), nullptr);
    folder_ = path;
  }
  ~TokenizerTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }

  std::unique_ptr<const Tokenizer> Load(const Json& json = SmallTokenizer()) const {
    Write("tokenizer.json", json.dump());
    auto tokenizer = Tokenizer::Load(folder_);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
  }

  std::filesystem::path folder_;
};

Ids Encode(const Tokenizer& tokenizer, const std::string& text, bool add_special_tokens = false) {
  const auto ids = tokenizer.Encode(text, {.add_special_tokens = add_special_tokens});
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.value_or(Ids());
}

TEST_F(TokenizerTest, EncodesWithOffsets) {
  struct Row {
    const char* name;
    std::string text;
    std::vector<Tokenizer::Token> tokens;
  };
  const Row rows[] = {
      {"empty", "", {}},
      {"merges", "he the", {{kHe, 0, 2}, {kSpaceThe, 2, 6}}},
      {"bytes of a character", "é", {{0xC3, 0, 1}, {0xA9, 1, 2}}},
      {"a special token", "he<s> the", {{kHe, 0, 2}, {kStart, 2, 5}, {kSpaceThe, 5, 9}}},
      {"special tokens in a row", "<s><s>", {{kStart, 0, 3}, {kStart, 3, 6}}},
      {"nearly a special token", "<s", {{'<', 0, 1}, {'s', 1, 2}}},
      {"NUL", std::string("\0h", 2), {{0, 0, 1}, {'h', 1, 2}}},
  };
  const auto tokenizer = Load();
  for (const Row& row : rows) {
    const auto tokens = tokenizer->EncodeWithOffsets(row.text, {});
    ASSERT_TRUE(tokens.ok()) << row.name << tokens.status();
    ASSERT_EQ(tokens->size(), row.tokens.size()) << row.name;
    for (size_t i = 0; i < tokens->size(); ++i) {
      EXPECT_EQ((*tokens)[i].id, row.tokens[i].id) << row.name;
      EXPECT_EQ((*tokens)[i].start, row.tokens[i].start) << row.name;
      EXPECT_EQ((*tokens)[i].end, row.tokens[i].end) << row.name;
    }
  }
}

TEST_F(TokenizerTest, APrefixSpaceComesFromTheFirstCharacter) {
  Json json = SmallTokenizer();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  const auto tokenizer = Load(json);
  EXPECT_EQ(Encode(*tokenizer, "the the"), (Ids{kSpaceThe, kSpaceThe}));
  EXPECT_EQ(Encode(*tokenizer, "a"), (Ids{' ', 'a'}));
  const auto tokens = tokenizer->EncodeWithOffsets("the<s>a", {});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  std::vector<std::pair<uint32_t, uint32_t>> spans;
  for (const auto& token : *tokens) spans.emplace_back(token.start, token.end);
  EXPECT_THAT(spans, ::testing::ElementsAre(std::pair(0, 3), std::pair(3, 6), std::pair(6, 7),
                                            std::pair(6, 7)));
}

TEST_F(TokenizerTest, PostProcessorRunsOnRequest) {
  Json json = SmallTokenizer();
  json["post_processor"] = Json::parse(kTemplate);
  const auto tokenizer = Load(json);
  EXPECT_EQ(Encode(*tokenizer, "he", false), Ids{kHe});
  EXPECT_EQ(Encode(*tokenizer, "he", true), (Ids{kStart, kHe, kEndOfText, kEndOfText}));
  EXPECT_EQ(Encode(*tokenizer, "", true), (Ids{kStart, kEndOfText, kEndOfText}));
  const auto tokens = tokenizer->EncodeWithOffsets("he", {.add_special_tokens = true});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->front().end, 0u);
  EXPECT_EQ(tokens->back().end, 0u);
}

TEST_F(TokenizerTest, RefusesTextThatItCannotEncode) {
  Json json = SmallTokenizer();
  json["model"]["vocab"].erase("q");
  json["model"]["unk_token"] = "<unk>";
  const auto tokenizer = Load(json);
  struct Row {
    std::string text;
    const char* message;
  };
  const Row rows[] = {
      {"ab\xFFz", "not valid UTF-8: the byte 0xff at offset 2"},
      {"\xC3", "not valid UTF-8: the byte 0xc3 at offset 0"},
      {"he<s> q", "no token for \"q\""},
  };
  for (const Row& row : rows) {
    const auto ids = tokenizer->Encode(row.text, {});
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << row.text;
    EXPECT_THAT(std::string(ids.status().message()), HasSubstr(row.message));
  }
}

TEST_F(TokenizerTest, Decodes) {
  struct Row {
    const char* name;
    Ids ids;
    std::string text;
    std::string without_special;
  };
  const Row rows[] = {
      {"nothing", {}, "", ""},
      {"words", {kHe, kSpaceThe}, "he the", "he the"},
      {"special tokens", {kStart, kHe, kEndOfText}, "<s>he<|endoftext|>", "he"},
      {"a character of two tokens", {0xC3, 0xA9}, "é", "é"},
      {"half of a character", {0xC3}, "\uFFFD", "\uFFFD"},
      {"halves apart", {0xC3, 'x', 0xA9}, "\uFFFDx\uFFFD", "\uFFFDx\uFFFD"},
      {"halves around a special token", {0xC3, kStart, 0xA9}, "\uFFFD<s>\uFFFD", "é"},
      {"padding ids", {'a', 261, 50000, 1 << 30, -1, 'b'}, "ab", "ab"},
      {"a padding id inside a character", {0xC3, 261, 0xA9}, "é", "é"},
  };
  const auto tokenizer = Load();
  for (const Row& row : rows) {
    EXPECT_EQ(tokenizer->Decode(row.ids, false), row.text) << row.name;
    EXPECT_EQ(tokenizer->Decode(row.ids, true), row.without_special) << row.name;
  }
}

TEST_F(TokenizerTest, StreamsWholeCharacters) {
  const auto tokenizer = Load();
  StreamDecoder decoder(*tokenizer, /*skip_special_tokens=*/true);
  EXPECT_EQ(decoder.Append('a'), "a");
  EXPECT_EQ(decoder.Append(0xF0), "");
  EXPECT_EQ(decoder.Append(0x9F), "");
  EXPECT_EQ(decoder.Append(kStart), "");
  EXPECT_EQ(decoder.Append(0x98), "");
  EXPECT_EQ(decoder.pending(), "\xF0\x9F\x98");
  EXPECT_EQ(decoder.Append(0x80), "😀");
  EXPECT_EQ(decoder.Finish(), "");
  EXPECT_EQ(decoder.Append(0xE2), "");
  EXPECT_EQ(decoder.Append(0x82), "");
  EXPECT_EQ(decoder.Append('z'), "\uFFFDz");
  EXPECT_EQ(decoder.Append(0xE2), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST_F(TokenizerTest, DescribesTokens) {
  const auto tokenizer = Load();
  EXPECT_EQ(tokenizer->vocab_size(), 261);
  EXPECT_EQ(tokenizer->TokenBytes(kSpaceThe), " the");
  EXPECT_EQ(tokenizer->TokenBytes(0xFF), "\xFF");
  EXPECT_EQ(tokenizer->TokenBytes(kStart), "<s>");
  EXPECT_EQ(tokenizer->TokenBytes(261), "");
  EXPECT_EQ(tokenizer->TokenBytes(-1), "");
  EXPECT_TRUE(tokenizer->IsSpecial(kStart));
  EXPECT_FALSE(tokenizer->IsSpecial(kHe));
  EXPECT_FALSE(tokenizer->IsSpecial(261));
}

TEST_F(TokenizerTest, FindsTheEndOfText) {
  struct Row {
    const char* name;
    const char* config;  // null: no tokenizer_config.json
    std::optional<TokenId> id;
  };
  const Row rows[] = {
      {"no config", nullptr, kEndOfText},
      {"config without it", "{}", kEndOfText},
      {"null", R"({"eos_token": null})", kEndOfText},
      {"a string", R"({"eos_token": "<s>"})", kStart},
      {"an object", R"({"eos_token": {"content": "<s>", "lstrip": false}})", kStart},
      {"an ordinary token becomes special", R"({"eos_token": "he"})", kHe},
  };
  for (const Row& row : rows) {
    std::filesystem::remove(folder_ / "tokenizer_config.json");
    if (row.config != nullptr) Write("tokenizer_config.json", row.config);
    const auto tokenizer = Load();
    ASSERT_NE(tokenizer, nullptr) << row.name;
    EXPECT_EQ(tokenizer->eos_token_id(), row.id) << row.name;
    EXPECT_TRUE(tokenizer->IsSpecial(*row.id)) << row.name;
  }
}

TEST_F(TokenizerTest, MayHaveNoEndOfText) {
  Json json = SmallTokenizer();
  json["added_tokens"].erase(0);
  EXPECT_EQ(Load(json)->eos_token_id(), std::nullopt);
}

TEST_F(TokenizerTest, ReadsVocabJsonAndMergesTxt) {
  Json vocab = SmallTokenizer()["model"]["vocab"];
  vocab["<|endoftext|>"] = kEndOfText;
  vocab["<e>"] = kStart;
  Write("vocab.json", vocab.dump());
  Write("merges.txt", "#version: 0.2\r\nĠ t\nh e\r\n\nĠt he");
  const auto tokenizer = Tokenizer::Load(folder_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(Encode(**tokenizer, "he the<|endoftext|><e>"),
            (Ids{kHe, kSpaceThe, kEndOfText, '<', 'e', '>'}));
  EXPECT_EQ((*tokenizer)->eos_token_id(), kEndOfText);
  EXPECT_TRUE((*tokenizer)->IsSpecial(kEndOfText));

  Write("tokenizer_config.json", R"({"eos_token": "<e>", "add_prefix_space": true})");
  const auto configured = Tokenizer::Load(folder_);
  ASSERT_TRUE(configured.ok()) << configured.status();
  EXPECT_EQ(Encode(**configured, "the<e><|endoftext|>"), (Ids{kSpaceThe, kStart, kEndOfText}));
  EXPECT_EQ((*configured)->eos_token_id(), kStart);
  EXPECT_TRUE((*configured)->IsSpecial(kEndOfText));
}

TEST_F(TokenizerTest, AFolderWithoutTokenizerIsNotFound) {
  EXPECT_EQ(Tokenizer::Load(folder_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Tokenizer::Load(folder_ / "missing").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(TokenizerTest, FaultsInTokenizerJsonAreNamed) {
  using Change = std::function<void(Json&)>;
  struct Row {
    const char* name;
    Change change;
    const char* message;
  };
  const auto set = [](const char* pointer, Json value) -> Change {
    return [=](Json& json) { json[Json::json_pointer(pointer)] = value; };
  };
  const Row rows[] = {
      {"no model", [](Json& json) { json.erase("model"); }, "model: must be an object, found null"},
      {"another model", set("/model/type", "Unigram"),
       "model: found \"Unigram\", supported are \"BPE\""},
      {"dropout", set("/model/dropout", 0.1), "model: dropout is 0.1"},
      {"a flag that is none", set("/model/ignore_merges", 1),
       "model: ignore_merges must be true or false, found 1"},
      {"vocab is a list", set("/model/vocab", Json::array({"a"})),
       "model: vocab must be an object"},
      {"vocab is empty", set("/model/vocab", Json::object()), "model: vocab: no tokens"},
      {"id is a string", set("/model/vocab/a", "97"), "model: vocab: \"a\": a token id must be"},
      {"id is negative", set("/model/vocab/a", -1), "from 0 to 16777215, found -1"},
      {"id is a fraction", set("/model/vocab/a", 97.5), "found 97.5"},
      {"id is huge", set("/model/vocab/a", 1ull << 63), "found 9223372036854775808"},
      {"ids are the same", set("/model/vocab/a", 98), "have the same id, 98"},
      {"merges is an object", set("/model/merges", Json::object()),
       "model: merges must be an array"},
      {"merge of three", set("/model/merges/1", "a b c"),
       "model: merges[1]: a merge is two tokens"},
      {"merge of one", set("/model/merges/1", {"a"}), "model: merges[1]: a merge is \"a b\" or"},
      {"merge of numbers", set("/model/merges/1", {1, 2}),
       "model: merges[1]: a merge is \"a b\" or"},
      {"merge of what is not there", set("/model/merges/2", "zz a"),
       "model: merges[2]: the merge of \"zz\""},
      {"merge to what is not there", set("/model/merges/2", "z z"),
       "needs \"zz\", which is not in"},
      {"another version", set("/version", "2.0"), "version is \"2.0\""},
      {"another normalizer", set("/normalizer", {{"type", "Precompiled"}}),
       "normalizer: found \"Precompiled\", supported are \"NFC\""},
      {"a normalizer in a Sequence",
       set("/normalizer",
           Json::parse(
               R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]})")),
       "normalizer.normalizers[1]: found \"Nmt\""},
      {"another pre-tokenizer", set("/pre_tokenizer", {{"type", "UnicodeScripts"}}),
       "pre_tokenizer: found \"UnicodeScripts\", supported are \"ByteLevel\""},
      {"a pre-tokenizer deep in Sequences",
       set("/pre_tokenizer",
           Json::parse(R"({"type": "Sequence", "pretokenizers": [{"type": "Sequence",
                           "pretokenizers": [{"type": "FixedLength"}]}]})")),
       "pre_tokenizer.pretokenizers[0].pretokenizers[0]: found \"FixedLength\""},
      {"a pattern that is malformed",
       set("/pre_tokenizer",
           Json::parse(
               R"({"type": "Split", "pattern": {"Regex": "a(b"}, "behavior": "Isolated"})")),
       "pre_tokenizer: pattern \"a(b\": at byte 3: a group is not closed"},
      {"a pattern that is not supported",
       set("/pre_tokenizer",
           Json::parse(
               R"({"type": "Split", "pattern": {"Regex": "(?x)a"}, "behavior": "Isolated"})")),
       "at byte 2: a group that begins so is not supported"},
      {"no pattern", set("/pre_tokenizer", Json::parse(R"({"type": "Split", "pattern": "a"})")),
       "pattern must be {\"Regex\": ...} or {\"String\": ...}, found \"a\""},
      {"another behavior",
       set("/pre_tokenizer",
           Json::parse(R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Joined"})")),
       "behavior is \"Joined\", allowed are Removed"},
      {"another decoder", set("/decoder", {{"type", "WordPiece"}}),
       "decoder: found \"WordPiece\", supported are \"ByteLevel\""},
      {"decoders in another order",
       set("/decoder", Json::parse(R"({"type": "Sequence", "decoders": [{"type": "ByteLevel"},
                           {"type": "Replace", "pattern": {"String": "a"}, "content": ""}]})")),
       "decoder.decoders[1]: found \"Replace\" after decoders that joined the tokens"},
      {"another post-processor", set("/post_processor", {{"type", "Other"}}),
       "post_processor: found \"Other\", supported are \"ByteLevel\""},
      {"a token of another id in a post-processor",
       set("/post_processor",
           Json::parse(R"({"type": "BertProcessing", "cls": ["<s>", 999], "sep": ["<s>", 260]})")),
       "cls: gives \"<s>\" the id 999, which no token has"},
      {"template without text",
       set("/post_processor", Json::parse(R"({"type": "TemplateProcessing", "single": []})")),
       "single has no Sequence"},
      {"template of two texts",
       set("/post_processor",
           Json::parse(
               R"({"type": "TemplateProcessing", "single": [{"Sequence": {}}, {"Sequence": {}}]})")),
       "post_processor: single must be"},
      {"template token without ids",
       set("/post_processor",
           Json::parse(
               R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]})")),
       "lacks the ids of \"x\""},
      {"template token of another id",
       [](Json& json) {
         json["post_processor"] = Json::parse(kTemplate);
         json["post_processor"]["special_tokens"]["<s>"]["ids"] = {999};
       },
       "gives \"<s>\" the id 999, which no token has"},
      {"added tokens is an object", set("/added_tokens", Json::object()),
       "added_tokens must be an array"},
      {"added token is a string", set("/added_tokens/1", "<s>"),
       "added_tokens[1]: must be an object"},
      {"added token is empty", set("/added_tokens/1/content", ""),
       "added_tokens[1]: content must be"},
      {"added token without id", set("/added_tokens/1/id", nullptr), "added_tokens[1]: a token id"},
      {"added token's id is taken", set("/added_tokens/1/id", 97),
       "\"<s>\" has id 97, which is that of \"a\""},
      {"added token has an id", set("/added_tokens/1/content", "a"),
       "\"a\" has id 260, but the vocabulary gives it id 97"},
      {"a list",
       [](Json& json) {
         json = Json::array({1, 2});
       },
       "is not a JSON object, found [1,2]"},
  };
  for (const Row& row : rows) {
    Json json = SmallTokenizer();
    row.change(json);
    Write("tokenizer.json", json.dump());
    const auto tokenizer = Tokenizer::Load(folder_);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << row.name;
    EXPECT_THAT(std::string(tokenizer.status().message()),
                AllOf(StartsWith((folder_ / "tokenizer.json").string()), HasSubstr(row.message)))
        << row.name;
  }
}

TEST_F(TokenizerTest, FaultsInOtherFilesAreNamed) {
  struct File {
    const char* name;
    const char* text;
  };
  struct Row {
    const char* name;
    std::vector<File> files;
    const char* message;
  };
  const Row rows[] = {
      {"not JSON", {{"tokenizer.json", "{\"model\": "}}, "tokenizer.json is not valid JSON"},
      {"not UTF-8", {{"tokenizer.json", "{\"\xFF\": 1}"}}, "tokenizer.json is not valid JSON"},
      {"empty", {{"tokenizer.json", ""}}, "tokenizer.json is not valid JSON"},
      {"no merges", {{"vocab.json", "{\"a\": 0}"}}, "merges.txt: missing, but vocab.json is there"},
      {"no vocab", {{"merges.txt", ""}}, "vocab.json: missing, but merges.txt is there"},
      {"vocab is not JSON",
       {{"vocab.json", "a"}, {"merges.txt", ""}},
       "vocab.json is not valid JSON"},
      {"vocab is a list",
       {{"vocab.json", "[]"}, {"merges.txt", ""}},
       "vocab.json is not a JSON object"},
      {"vocab's ids",
       {{"vocab.json", "{\"a\": 0, \"b\": 0}"}, {"merges.txt", ""}},
       "vocab.json: \"a\" and \"b\" have"},
      {"merges' line",
       {{"vocab.json", "{\"a\": 0}"}, {"merges.txt", "#version: 0.2\na\n"}},
       "merges.txt: line 2: a merge is"},
      {"merges' tokens",
       {{"vocab.json", "{\"a\": 0}"}, {"merges.txt", "\xFF a\n"}},
       "merges.txt: line 1: the merge of \"\\xff\""},
      {"config is not JSON",
       {{"vocab.json", "{\"a\": 0}"}, {"merges.txt", ""}, {"tokenizer_config.json", "{"}},
       "tokenizer_config.json is not valid"},
      {"eos is a number",
       {{"vocab.json", "{\"a\": 0}"},
        {"merges.txt", ""},
        {"tokenizer_config.json", "{\"eos_token\": 1}"}},
       "tokenizer_config.json: eos_token must be"},
      {"eos is not there",
       {{"vocab.json", "{\"a\": 0}"},
        {"merges.txt", ""},
        {"tokenizer_config.json", "{\"eos_token\": \"x\"}"}},
       "eos_token is \"x\", which the vocabulary lacks"},
  };
  for (const Row& row : rows) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
    for (const File& file : row.files) Write(file.name, file.text);
    const auto tokenizer = Tokenizer::Load(folder_);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << row.name;
    EXPECT_THAT(std::string(tokenizer.status().message()),
                AllOf(StartsWith(folder_.string()), HasSubstr(row.message)))
        << row.name;
  }
  std::filesystem::create_directory(folder_ / "tokenizer.json");
  EXPECT_THAT(std::string(Tokenizer::Load(folder_).status().message()),
              HasSubstr("tokenizer.json: not a regular file"));
}

TEST_F(TokenizerTest, DeepNestingIsNoStackOverflow) {
  for (const char* brackets : {"[]", "{}"}) {
    const std::string open = brackets[0] == '[' ? "[" : "{\"a\":";
    std::string text;
    for (int i = 0; i < 200000; ++i) text += open;
    text += "1" + std::string(200000, brackets[1]);
    Write("tokenizer.json", "{\"model\": " + text + "}");
    EXPECT_EQ(Tokenizer::Load(folder_).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

// Broken files of all kinds end in a status or in a tokenizer that works, never in a crash.
TEST_F(TokenizerTest, SurvivesRandomDamageToItsFile) {
  Json json = SmallTokenizer();
  json["post_processor"] = Json::parse(kTemplate);
  const std::string whole = json.dump();
  const std::string replacements = "{}[]\",:0-e9ntf\\\xFF\xC3 ";
  std::mt19937 random(11);
  int loaded = 0;
  for (int round = 0; round < 1000; ++round) {
    std::string damaged = whole;
    for (size_t n = random() % 3; n > 0; --n) {
      const size_t at = random() % damaged.size();
      damaged[at] = replacements[random() % replacements.size()];
    }
    if (round % 4 == 1) damaged.resize(random() % damaged.size());
    if (round % 4 == 2) damaged.erase(random() % damaged.size(), random() % 40);
    Write("tokenizer.json", damaged);
    const auto tokenizer = Tokenizer::Load(folder_);
    if (!tokenizer.ok()) {
      ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ++loaded;
    if (const auto ids = (*tokenizer)->Encode("he the<s> é", {.add_special_tokens = true});
        ids.ok()) {
      (*tokenizer)->Decode(*ids, true);
    }
  }
  EXPECT_GT(loaded, 50);
  EXPECT_LT(loaded, 900);
}

// Each value of the file, however deep, replaced by one of another type.
TEST_F(TokenizerTest, SurvivesValuesOfWrongTypes) {
  Json json = SmallTokenizer();
  json["post_processor"] = Json::parse(kTemplate);
  json["model"]["vocab"] = {{"h", 0}, {"e", 1}, {"he", 2}};
  json["model"]["merges"] = {"h e"};
  const std::vector<Json> values = {nullptr,
                                    true,
                                    -1,
                                    1.5,
                                    "x",
                                    Json::array(),
                                    Json::array({1}),
                                    Json::object(),
                                    Json::object({{"type", 1}})};
  int refused = 0;
  const Json flat = json.flatten();
  for (const auto& [pointer, unused] : flat.items()) {
    Json::json_pointer place(pointer);
    for (; !place.empty(); place.pop_back()) {
      for (const Json& value : values) {
        Json changed = json;
        changed[place] = value;
        Write("tokenizer.json", changed.dump());
        const auto tokenizer = Tokenizer::Load(folder_);
        refused += !tokenizer.ok();
        if (tokenizer.ok())
          (*tokenizer)->Encode("he<s>", {.add_special_tokens = true}).status().IgnoreError();
      }
    }
  }
  EXPECT_GT(refused, 100);
}

TEST_F(TokenizerTest, SurvivesRandomTextsAndIds) {
  const auto tokenizer = Load();
  std::mt19937 random(12);
  const std::vector<std::string> pieces = {"he", " the", "<s>",  "<|endoftext|>", "é",
                                           "😀",  "\n",   "\xFF", "\xC3",          "<"};
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (size_t n = random() % 12; n > 0; --n) {
      text += random() % 2 ? pieces[random() % pieces.size()]
                           : std::string(1, static_cast<char>(random() % 256));
    }
    const auto ids = tokenizer->Encode(text, {.add_special_tokens = false});
    if (ids.ok()) {
      ASSERT_EQ(tokenizer->Decode(*ids, false), text);
    } else {
      ASSERT_THAT(std::string(ids.status().message()), HasSubstr("not valid UTF-8"));
    }
    Ids any;
    for (size_t n = random() % 12; n > 0; --n)
      any.push_back(static_cast<TokenId>(random() % 300) - 20);
    StreamDecoder decoder(*tokenizer, round % 2 == 0);
    std::string streamed;
    for (const TokenId id : any) streamed += decoder.Append(id);
    ASSERT_EQ(streamed + decoder.Finish(), tokenizer->Decode(any, round % 2 == 0));
  }
}

TEST_F(TokenizerTest, LongTextsTakeNoQuadraticTime) {
  Json json = SmallTokenizer();
  // White space on both sides, to be looked for again and again.
  json["added_tokens"][1]["lstrip"] = true;
  json["added_tokens"][1]["rstrip"] = true;
  Json space = json["added_tokens"][1];
  space["id"] = 261;
  space["content"] = "\t";
  json["added_tokens"].push_back(space);
  const auto tokenizer = Load(json);
  constexpr size_t kLength = 1 << 20;
  for (const char* unit : {"h", " ", "\t", "<s>", "<", " <s", "é", "'", "he the"}) {
    std::string text;
    while (text.size() < kLength) text += unit;
    EXPECT_FALSE(Encode(*tokenizer, text).empty()) << unit;
  }
}

TEST_F(TokenizerTest, ThreadsShareOne) {
  const auto tokenizer = Load();
  const std::string text = "he the<s> \n  é'll 12 the";
  const Ids expected = Encode(*tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        const auto ids = tokenizer->Encode(text, {.add_special_tokens = false});
        if (!ids.ok() || *ids != expected || tokenizer->Decode(*ids, false) != text) ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ::testing::Each(0));
}

}  // namespace
}  // namespace ddl
