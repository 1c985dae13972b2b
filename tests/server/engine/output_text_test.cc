#include "server/engine/output_text.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
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
       {}, false, "\xe2\x82\xac!", {{"", 1}, {"", 1}, {"\xe2\x82\xac", 1}, {"!", 1}}, ""},
      {"half a character at the end", {}, false, "a\xe2\x82", {{"a", 1}, {"\xef\xbf\xbd", 1}}, ""},
      {"stop string over three tokens", {"END"}, false, "aEND", {{"a", 1}, {"", 0}, {"", 0}, {"", 3}}, "END"},
      {"included", {"END"}, true, "aEND", {{"a", 1}, {"", 0}, {"", 0}, {"END", 3}}, "END"},
      {"a beginning that comes to nothing", {"END"}, false, "ENx", {{"", 0}, {"", 0}, {"ENx", 3}}, ""},
      {"a beginning that begins again", {"EEND"}, false, "EEEND!",
       {{"", 0}, {"", 0}, {"E", 1}, {"", 0}, {"", 4}}, "EEND"},
      {"held at the end", {"END"}, false, "aEN", {{"a", 1}, {"", 0}, {"EN", 2}}, ""},
      {"the earlier one wins", {"c", "bcd"}, false, "abc", {{"a", 1}, {"", 0}, {"b", 2}}, "c"},
      {"a stop string of one character", {"\n"}, false, "a\n", {{"a", 1}, {"", 1}}, "\n"},
      {"a stop string that is a character of two bytes", {"\xc3\xa9"}, false, "a\xc3\xa9",
       {{"a", 1}, {"", 1}, {"", 1}}, "\xc3\xa9"},
  };
  const auto tokenizer = MakeByteTokenizer();
  for (const Row& row : rows) {
    OutputText text(tokenizer.get(), {true, row.stop, row.include});
    for (size_t i = 0; i < row.steps.size(); ++i) {
      const bool last = i + 1 == row.bytes.size();
      const auto id = static_cast<TokenId>(static_cast<unsigned char>(row.bytes[i]));
      // The row about half a character names two steps for three bytes: its last token is the third.
      const OutputText::Piece piece = text.Append({.id = id, .last = last});
      if (row.name == "half a character at the end" && i == 1) {
        EXPECT_EQ(piece.text, "") << row.name;
        const OutputText::Piece end = text.Append({.id = 0x82, .last = true});
        EXPECT_EQ(end.text, row.steps[1].text) << row.name;
        continue;
      }
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

// Against the definition: decode everything so far, look for stop strings in all of it.
TEST(OutputTextTest, EqualsTheDefinitionOnRandomBytes) {
  const auto tokenizer = MakeByteTokenizer();
  std::mt19937 random(11);
  const std::string alphabet = "ab\xc3\xa9\xe2\x82\xac\xff";  // with bytes that are no character
  const auto random_bytes = [&](size_t length) {
    std::string bytes;
    for (size_t i = 0; i < length; ++i) bytes += alphabet[random() % alphabet.size()];
    return bytes;
  };
  const std::vector<std::string> characters = {"a", "b", "\xc3\xa9", "\xe2\x82\xac", "\xef\xbf\xbd"};
  int matched = 0, unmatched = 0;
  for (int run = 0; run < 20000; ++run) {
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) {
      for (size_t i = 0, n = 1 + random() % 4; i < n; ++i) stop += characters[random() % 5];
    }
    const bool include = random() % 2 == 0;
    const std::string bytes = random_bytes(1 + random() % 20);
    OutputText text(tokenizer.get(), {true, stops, include});
    StreamDecoder whole(*tokenizer, true);
    std::string decoded, sent;
    size_t tokens = 0;
    bool ended = false;
    for (size_t i = 0; i < bytes.size() && !ended; ++i) {
      const auto id = static_cast<TokenId>(static_cast<unsigned char>(bytes[i]));
      const bool last = i + 1 == bytes.size();
      const OutputText::Piece piece = text.Append({.id = id, .last = last});
      sent += piece.text;
      tokens += piece.num_tokens;
      decoded += whole.Append(id);
      if (last) decoded += whole.Finish();

      size_t begin = std::string::npos;
      const std::string* stop = nullptr;
      for (const std::string& candidate : stops) {
        const size_t at = decoded.find(candidate);
        if (at < begin) {
          begin = at;
          stop = &candidate;
        }
      }
      std::string want = decoded;
      if (stop != nullptr) {
        want = decoded.substr(0, begin + (include ? stop->size() : 0));
      } else if (!last) {
        size_t held = 0;
        for (const std::string& candidate : stops) {
          for (size_t n = 1; n < candidate.size() && n <= decoded.size(); ++n) {
            if (decoded.ends_with(candidate.substr(0, n))) held = std::max(held, n);
          }
        }
        want = decoded.substr(0, decoded.size() - held);
      }
      ASSERT_EQ(sent, want) << "run " << run << " token " << i;
      ASSERT_EQ(piece.matched_stop.has_value(), stop != nullptr) << "run " << run;
      ended = stop != nullptr;
      if (ended || last) {
        ASSERT_EQ(tokens, i + 1) << "run " << run;
      }
    }
    ++(ended ? matched : unmatched);
  }
  EXPECT_GT(matched, 1000);
  EXPECT_GT(unmatched, 1000);
}

}  // namespace
}  // namespace ddl
