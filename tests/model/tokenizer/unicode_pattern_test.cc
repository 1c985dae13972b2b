#include "model/tokenizer/unicode_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ddl {
namespace {

using Words = std::vector<std::string>;

// The texts that `pattern` matches one after the other from the start of `text`.
Words Split(const UnicodePattern& pattern, const std::string& text) {
  PatternMatcher matcher(pattern);
  Words words;
  for (size_t position = 0; position < text.size();) {
    const absl::StatusOr<size_t> length = matcher.MatchLength(text, position);
    EXPECT_TRUE(length.ok()) << length.status();
    if (!length.ok() || *length == 0) break;
    words.push_back(text.substr(position, *length));
    position += *length;
  }
  return words;
}

TEST(UnicodePatternTest, SplitsWordsAsGpt2) {
  struct Row {
    const char* name;
    std::string text;
    Words words;
  };
  const Row rows[] = {
      {"nothing", "", {}},
      {"words take one space", "a bc  d", {"a", " bc", " ", " d"}},
      {"letters, digits and the rest", "ab12!?x", {"ab", "12", "!?", "x"}},
      {"contractions", "it's I'll don't", {"it", "'s", " I", "'ll", " don", "'t"}},
      {"contractions are lower case", "IT'S", {"IT", "'", "S"}},
      {"contractions need no word's end", "'super", {"'s", "uper"}},
      {"a space before an apostrophe", " 's", {" '", "s"}},
      {"white space at the end stays whole", "a \n ", {"a", " \n "}},
      {"white space leaves its last", "a\n\n\nb", {"a", "\n\n", "\n", "b"}},
      {"only U+0020 joins a word", "a\u00A0b\tc", {"a", "\u00A0", "b", "\t", "c"}},
      {"all of White_Space",
       "\t\n\v\f\r \u0085\u00A0\u1680\u2000\u200A\u2028\u2029\u202F\u205F\u3000",
       {"\t\n\v\f\r \u0085\u00A0\u1680\u2000\u200A\u2028\u2029\u202F\u205F\u3000"}},
      {"not white space", "\u180E\u200B\u2060\uFEFF\x1C", {"\u180E\u200B\u2060\uFEFF\x1C"}},
      {"marks are no letters", "e\u0301e", {"e", "\u0301", "e"}},
      {"numbers of all kinds", "1\u00BD\u2167\u0664x", {"1\u00BD\u2167\u0664", "x"}},
      {"letters since Unicode 14",
       "a\u1C8A\U000105C0\U0002EBF0\U000323AFb",
       {"a\u1C8A\U000105C0\U0002EBF0\U000323AFb"}},
      {"numbers since Unicode 14", "1\U00010D40\U0001D2C0", {"1\U00010D40\U0001D2C0"}},
      {"unassigned", "!\U000323B0a", {"!\U000323B0", "a"}},
      {"emoji", " 👩🏽‍🚀 ok", {" 👩🏽‍🚀", " ok"}},
  };
  const auto pattern = UnicodePattern::Gpt2Word();
  ASSERT_TRUE(pattern.ok()) << pattern.status();
  for (const Row& row : rows) EXPECT_EQ(Split(*pattern, row.text), row.words) << row.name;
}

TEST(UnicodePatternTest, LongRunsAreOneMatch) {
  const auto pattern = UnicodePattern::Gpt2Word();
  ASSERT_TRUE(pattern.ok()) << pattern.status();
  constexpr size_t kLength = 8 << 20;
  for (const char* unit : {"a", "1", "!", " ", "é", "\u3000"}) {
    std::string run;
    while (run.size() < kLength) run += unit;
    EXPECT_EQ(Split(*pattern, run), Words{run}) << unit;
  }
  const std::string spaces(kLength, ' ');
  EXPECT_EQ(Split(*pattern, spaces + "a"), (Words{spaces.substr(1), " a"}));
  EXPECT_EQ(Split(*pattern, spaces + "\n1"), (Words{spaces, "\n", "1"}));
}

TEST(UnicodePatternTest, MatchesWhereItIsAskedTo) {
  const auto pattern = UnicodePattern::WhiteSpace();
  ASSERT_TRUE(pattern.ok()) << pattern.status();
  PatternMatcher matcher(*pattern);
  EXPECT_EQ(*matcher.MatchLength("a  b", 0), 0u);
  EXPECT_EQ(*matcher.MatchLength("a  b", 1), 2u);
  EXPECT_EQ(*matcher.MatchLength("a  b", 4), 0u);
  EXPECT_EQ(*matcher.MatchLength("", 0), 0u);
}

}  // namespace
}  // namespace ddl
