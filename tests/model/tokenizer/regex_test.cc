#include "model/tokenizer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "model/tokenizer/pattern_matches.h"
#include "model/tokenizer/pre_tokenizer.h"

namespace ddl {
namespace {

using Words = std::vector<std::string>;

absl::StatusOr<Regex> Gpt2Words() { return Regex::FromOniguruma(PreTokenizer::kGpt2Pattern); }

// The texts that `pattern` matches one after the other from the start of `text`.
Words Split(const Regex& pattern, const std::string& text) {
  RegexMatcher matcher(pattern);
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

TEST(RegexTest, SplitsWordsAsGpt2) {
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
  const auto pattern = Gpt2Words();
  ASSERT_TRUE(pattern.ok()) << pattern.status();
  for (const Row& row : rows) EXPECT_EQ(Split(*pattern, row.text), row.words) << row.name;
}

TEST(RegexTest, LongRunsAreOneMatch) {
  const auto pattern = Gpt2Words();
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

TEST(RegexTest, MatchesWhereItIsAskedTo) {
  const auto pattern = Regex::WhiteSpace();
  ASSERT_TRUE(pattern.ok()) << pattern.status();
  RegexMatcher matcher(*pattern);
  EXPECT_EQ(*matcher.MatchLength("a  b", 0), 0u);
  EXPECT_EQ(*matcher.MatchLength("a  b", 1), 2u);
  EXPECT_EQ(*matcher.MatchLength("a  b", 4), 0u);
  EXPECT_EQ(*matcher.MatchLength("", 0), 0u);
}

// The matches in a text, empty ones too, as "start-end".
std::string Matches(const std::string& pattern, const std::string& text) {
  const auto regex = Regex::FromOniguruma(pattern);
  EXPECT_TRUE(regex.ok()) << pattern << ": " << regex.status();
  if (!regex.ok()) return "";
  RegexMatcher matcher(*regex);
  const auto spans = FindMatches(matcher, text);
  EXPECT_TRUE(spans.ok()) << spans.status();
  std::string result;
  for (const PatternSpan& span : *spans) {
    if (!span.is_match) continue;
    result +=
        (result.empty() ? "" : " ") + std::to_string(span.start) + "-" + std::to_string(span.end);
  }
  return result;
}

// What Oniguruma finds, where PCRE2 by itself would find something else.
TEST(RegexTest, MatchesAsOniguruma) {
  struct Row {
    const char* pattern;
    const char* text;
    const char* matches;
  };
  const Row rows[] = {
      {R"(\h+)", "xfF9 g", "1-4"},              // hexadecimal digits
      {R"(\v)", "\n\v", "1-2"},                 // one vertical tab
      {R"(^a)", "a\na", "0-1 2-3"},             // at every line
      {R"(\s+$)", "a \nb ", "1-2 4-5"},         // likewise
      {"a.b", "a\nb axb", "4-7"},               //
      {"(?m:a.b)", "a\nb axb", "0-3 4-7"},      // m is what others call s
      {"a{1,2}+", "aaaaa", "0-5"},              // repeated, not possessive
      {"a{2}?b?", "aab b", "0-3 4-5"},          // optional, not lazy
      {"a{,2}b", "aaab", "1-4"},                //
      {"x{a}", "x{a}", "0-4"},                  // no bounds: as it is written
      {"[a-c&&[^b]]+", "abca", "0-1 2-4"},      // intersected
      {"[a[0-9]]+", "a1b2", "0-2 3-4"},         // nested
      {R"([^\s[.,]]+)", "ab, cd.", "0-2 4-6"},  //
      {R"([^\S\n]+)", "a \n b", "1-2 3-4"},     //
      {"[]a]+", "a]b", "0-2"},                  // a bracket that comes first
      {"[a&&]", "a", ""},                       // intersected with nothing
      {R"([\b])", "a\b", "1-2"},                //
      {"a(?i)b|c", "aB aC", "0-2 3-5"},         // the option holds to the group's end
      {"(?i:k)", "\u212A", "0-3"},              // the Kelvin sign
      {R"(\p{^L}+)", "ab12", "2-4"},            //
      {R"([[:punct:]]+)", "a$-b", "1-3"},       //
      {R"(\p{Punct}+)", "a$-b", "2-3"},         //
      {R"(\w+)", "x\u00B2-", "0-3"},            //
      {R"([\w]+)", "x\u00B2-", "0-1"},          //
      {R"(\bx)", "\u00B2x x", "4-5"},           //
      {R"(\u00e9)", "\u00e9", "0-2"},           //
      {"a*", "baac", "0-0 1-3 4-4"},            // none right after a match
      {"", "ab", "0-0 1-1 2-2"},                //
      {"(a)\\1", "aab", "0-2"},                 //
  };
  for (const Row& row : rows) EXPECT_EQ(Matches(row.pattern, row.text), row.matches) << row.pattern;
}

TEST(RegexTest, RefusesWhatItCannotDo) {
  struct Row {
    const char* pattern;
    const char* message;
  };
  const Row rows[] = {
      {"a)", "at byte 2: a ) without its ("},
      {"(a", "a group is not closed"},
      {"[a", "a set is not closed"},
      {"+a", "a quantifier with nothing before it"},
      {"a|*", "a quantifier with nothing before it"},
      {"a\\", "a \\ at the end"},
      {R"(\p{Klingon})", R"(the property \p{Klingon} is not supported)"},
      {R"(\K)", R"(\K is not supported)"},
      {R"(\X)", R"(\X is not supported)"},
      {R"(\xFF)", "no character has this number"},
      {R"(\x{110000})", "no character has this number"},
      {R"(\uD800)", "no character has this number"},
      {"(?x)a", "a group that begins so is not supported"},
      {"(?<n>a)", "named groups are not supported"},
      {"(?~a)", "absent groups"},
      {"(?(1)a)", "conditions"},
      {R"((?i)\p{Lu})", "letters of one case, Lu, under (?i)"},
      {"(?i:a(b[[:upper:]]))", "letters of one case, upper, under (?i)"},
      {"[b-a]", "a range whose end is before its start"},
      {R"([a-\d])", "a range that ends in a set"},
      {"[[:moon:]]", "the set [:moon:] is not supported"},
      {"(?<=a+)b", "lookbehind assertion is not fixed length"},
      {"a\xFF", "at byte 1: not valid UTF-8"},
  };
  for (const Row& row : rows) {
    const auto regex = Regex::FromOniguruma(row.pattern);
    EXPECT_EQ(regex.status().code(), absl::StatusCode::kInvalidArgument) << row.pattern;
    EXPECT_THAT(std::string(regex.status().message()), ::testing::HasSubstr(row.message))
        << row.pattern;
  }
  for (const std::string& deep :
       {std::string(100000, '('), std::string(100000, '['), "a" + std::string(100000, '+')}) {
    EXPECT_FALSE(Regex::FromOniguruma(deep).ok());
  }
  EXPECT_FALSE(Regex::FromOniguruma("(?i)" + std::string(60, '(') + std::string(60, ')')).ok());
}

TEST(RegexTest, QuadraticTextsGiveUp) {
  const auto regex = Regex::FromOniguruma(R"(\s+$)");
  ASSERT_TRUE(regex.ok()) << regex.status();
  RegexMatcher matcher(*regex);
  const auto match = matcher.Find(std::string(4 << 20, ' ') + "x", 0);
  EXPECT_EQ(match.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(match.status().message()), ::testing::HasSubstr("it takes too long"));
  // Sparse matches are no trouble.
  RegexMatcher other(*regex);
  const auto found = other.Find(std::string(1 << 20, 'x') + " \n", 0);
  ASSERT_TRUE(found.ok() && found->has_value()) << found.status();
  EXPECT_EQ((*found)->start, 1u << 20);
}

TEST(RegexTest, HostilePatternsGiveUp) {
  const auto regex = Regex::FromOniguruma("(a+)+$");
  ASSERT_TRUE(regex.ok()) << regex.status();
  RegexMatcher matcher(*regex);
  const auto match = matcher.Find(std::string(60, 'a') + "b", 0);
  EXPECT_EQ(match.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(match.status().message()),
              ::testing::AllOf(::testing::HasSubstr("gave up at offset 0 of a text of 61 bytes"),
                               ::testing::HasSubstr("match limit exceeded")));
}

}  // namespace
}  // namespace ddl
