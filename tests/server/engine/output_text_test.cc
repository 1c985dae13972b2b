#include "server/engine/output_text.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/byte_tokenizer.h"

namespace ddl {
namespace {

struct Step {
  std::string text;
  size_t num_tokens;
};

// One token a byte: characters of several bytes are split over tokens.
TEST(OutputTextTest, Table) {
  struct Row {
    std::string name;
    std::vector<std::string> stop;
    bool include;
    std::string bytes;  // the last byte is the last token
    std::vector<Step> steps;
    std::string matched;
  };
  const std::vector<Row> rows = {
      {"no stop strings", {}, false, "ab", {{"a", 1}, {"b", 1}}, ""},
      {"a character of three bytes: tokens travel before their text",
       {},
       false,
       "\xe2\x82\xac!",
       {{"", 1}, {"", 1}, {"\xe2\x82\xac", 1}, {"!", 1}},
       ""},
      {"half a character at the end",
       {},
       false,
       "a\xe2\x82",
       {{"a", 1}, {"", 1}, {"\xef\xbf\xbd", 1}},
       ""},
      {"stop string over three tokens",
       {"END"},
       false,
       "aEND",
       {{"a", 1}, {"", 0}, {"", 0}, {"", 3}},
       "END"},
      {"included", {"END"}, true, "aEND", {{"a", 1}, {"", 0}, {"", 0}, {"END", 3}}, "END"},
      {"a beginning that comes to nothing",
       {"END"},
       false,
       "ENx",
       {{"", 0}, {"", 0}, {"ENx", 3}},
       ""},
      {"a beginning that begins again",
       {"EEND"},
       false,
       "EEEND!",
       {{"", 0}, {"", 0}, {"E", 1}, {"", 0}, {"", 4}},
       "EEND"},
      {"held at the end", {"END"}, false, "aEN", {{"a", 1}, {"", 0}, {"EN", 2}}, ""},
      {"the earlier one wins", {"c", "bcd"}, false, "abc", {{"a", 1}, {"", 0}, {"b", 2}}, "c"},
      {"a stop string of one character", {"\n"}, false, "a\n", {{"a", 1}, {"", 1}}, "\n"},
      {"a stop string that is a character of two bytes",
       {"\xc3\xa9"},
       false,
       "a\xc3\xa9",
       {{"a", 1}, {"", 1}, {"", 1}},
       "\xc3\xa9"},
  };
  const auto tokenizer = MakeByteTokenizer();
  for (const Row& row : rows) {
    OutputText text(tokenizer.get(), {true, row.stop, row.include});
    for (size_t i = 0; i < row.steps.size(); ++i) {
      const bool last = i + 1 == row.bytes.size();
      const auto id = static_cast<TokenId>(static_cast<unsigned char>(row.bytes[i]));
      const OutputText::Piece piece = text.Append({.id = id, .last = last});
      EXPECT_EQ(piece.text, row.steps[i].text) << row.name << ", token " << i;
      EXPECT_EQ(piece.num_tokens, row.steps[i].num_tokens) << row.name << ", token " << i;
      const bool matches = i + 1 == row.steps.size() && !row.matched.empty();
      EXPECT_EQ(piece.matched_stop.value_or(""), matches ? row.matched : "") << row.name;
    }
  }
}

TEST(OutputTextTest, StopStringsDoNotCountBeforeMinTokens) {
  const auto tokenizer = MakeByteTokenizer();
  OutputText text(tokenizer.get(), {true, {"ab"}, false});
  EXPECT_EQ(text.Append({.id = 'a', .may_stop = false}).text, "a");
  EXPECT_EQ(text.Append({.id = 'b', .may_stop = false}).text, "b");
  EXPECT_EQ(text.Append({.id = 'a'}).text, "");
  EXPECT_EQ(text.Append({.id = 'b'}).matched_stop, "ab");
}

TEST(OutputTextTest, AnEndTokenHasNoText) {
  const auto tokenizer = MakeByteTokenizer();
  OutputText text(tokenizer.get(), {true, {"xy"}, false});
  EXPECT_EQ(text.Append({.id = 'x'}).text, "");
  const OutputText::Piece piece = text.Append({.id = 'z', .in_text = false, .last = true});
  EXPECT_EQ(piece.text, "x");
  EXPECT_EQ(piece.num_tokens, 2u);
}

TEST(OutputTextTest, WithoutATokenizerTokensComeAlone) {
  OutputText text(nullptr, {});
  for (int i = 0; i < 3; ++i) {
    const OutputText::Piece piece = text.Append({.id = 7, .last = i == 2});
    EXPECT_EQ(piece.text, "");
    EXPECT_EQ(piece.num_tokens, 1u);
  }
}

// Tokens of several bytes, with parts of characters at their ends, and a special token.
std::shared_ptr<const Tokenizer> MakeRaggedTokenizer() {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / ("ragged." + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  // As vocabularies write bytes: Ã© is C3 A9 (é), âĤ¬ is E2 82 AC (the euro sign), ÿ is FF.
  std::ofstream(folder / "vocab.json")
      << R"({"a": 0, "b": 1, "Ã": 2, "©": 3, "â": 4, "Ĥ": 5, "¬": 6, "ÿ": 7, "ab": 8, "bba": 9, "aÃ": 10,)"
      << R"("©b": 11, "bâĤ": 12, "Ĥ¬a": 13, "Ã©": 14, "aâĤ¬bÃ": 15, "<|endoftext|>": 16})";
  std::ofstream(folder / "merges.txt") << "#version: 0.2\n";
  auto tokenizer = Tokenizer::Load(folder);
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// What has been sent after some tokens, by the definition: from all their text, at once.
struct Expected {
  std::string text;
  size_t num_tokens = 0;
  std::optional<std::string> matched_stop;
};

// `text` is all of the text, `ends` its length after each token. Stop strings count from byte
// `counts_from` on.
Expected ExpectedFor(const OutputText::Options& options, const std::string& text,
                     const std::vector<size_t>& ends, size_t counts_from, bool last) {
  size_t begin = std::string::npos;
  const std::string* stop = nullptr;
  for (const std::string& candidate : options.stop) {
    const size_t at = text.find(candidate, counts_from);
    if (at < begin) {
      begin = at;
      stop = &candidate;
    }
  }
  if (stop != nullptr) {
    const size_t end = begin + (options.include_stop_str_in_output ? stop->size() : 0);
    return {text.substr(0, end), ends.size(), *stop};
  }
  if (last) return {text, ends.size(), std::nullopt};
  size_t held = 0;
  for (const std::string& candidate : options.stop) {
    for (size_t n = 1; n < candidate.size() && n <= text.size() - counts_from; ++n) {
      if (text.ends_with(candidate.substr(0, n))) held = std::max(held, n);
    }
  }
  const size_t sent = text.size() - held;
  const auto released = std::upper_bound(ends.begin(), ends.end(), sent) - ends.begin();
  return {text.substr(0, sent), static_cast<size_t>(released), std::nullopt};
}

TEST(OutputTextTest, EqualsTheDefinitionOnRandomTokens) {
  const auto tokenizer = MakeRaggedTokenizer();
  std::mt19937 random(11);
  const std::vector<std::string> characters = {"a", "b", "\xc3\xa9", "\xe2\x82\xac",
                                               "\xef\xbf\xbd"};
  int matched = 0;
  int unmatched = 0;
  for (int run = 0; run < 40000; ++run) {
    OutputText::Options options;
    options.stop.resize(random() % 4);
    for (std::string& stop : options.stop) {
      for (size_t n = 1 + random() % 4; n > 0; --n)
        stop += characters[random() % characters.size()];
    }
    options.include_stop_str_in_output = random() % 2 == 0;
    options.skip_special_tokens = random() % 2 == 0;
    const size_t min_tokens = random() % 3 == 0 ? random() % 6 : 0;
    const size_t num_tokens = 1 + random() % 15;

    OutputText output(tokenizer.get(), options);
    StreamDecoder decoder(*tokenizer, options.skip_special_tokens);
    std::string text;
    std::vector<size_t> ends;
    size_t counts_from = 0;
    Expected sent;
    for (size_t i = 0; i < num_tokens && !sent.matched_stop.has_value(); ++i) {
      const auto id = static_cast<TokenId>(random() % 17);
      const bool last = i + 1 == num_tokens;
      const bool may_stop = i >= min_tokens;
      const OutputText::Piece piece = output.Append({.id = id, .may_stop = may_stop, .last = last});
      sent.text += piece.text;
      sent.num_tokens += piece.num_tokens;
      sent.matched_stop = piece.matched_stop;

      text += decoder.Append(id);
      if (last) text += decoder.Finish();
      ends.push_back(text.size());
      if (!may_stop) counts_from = text.size();
      const Expected expected = ExpectedFor(options, text, ends, counts_from, last);
      ASSERT_EQ(sent.text, expected.text) << "run " << run << ", token " << i;
      ASSERT_EQ(sent.num_tokens, expected.num_tokens) << "run " << run << ", token " << i;
      ASSERT_EQ(sent.matched_stop, expected.matched_stop) << "run " << run << ", token " << i;
    }
    ++(sent.matched_stop.has_value() ? matched : unmatched);
  }
  EXPECT_GT(matched, 5000);
  EXPECT_GT(unmatched, 5000);
}

}  // namespace
}  // namespace ddl
