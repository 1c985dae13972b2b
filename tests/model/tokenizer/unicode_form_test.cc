#include "model/tokenizer/unicode_form.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "model/tokenizer/aligned_text.h"

namespace ddl {
namespace {

using Spans = std::vector<std::pair<uint32_t, uint32_t>>;

AlignedText Changed(const std::string& text, const std::vector<ChangedCharacter>& changed) {
  AlignedText result(/*tracked=*/true);
  result.AppendChanged(AlignedText(text, 0, /*tracked=*/true), 0, text.size(), changed);
  return result;
}

// Where each character comes from.
Spans Origins(const AlignedText& text) {
  Spans spans;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((text.text()[i] & 0xC0) == 0x80) continue;
    const TextSpan span = text.OriginOfCharacterAt(i);
    spans.emplace_back(span.start, span.end);
  }
  return spans;
}

// Expected texts are those of Python's unicodedata.normalize, where are spans those of Hugging
// Face's tokenizers.
TEST(UnicodeFormTest, NormalizesAndKeepsTrack) {
  struct Row {
    const char* name;
    UnicodeForm form;
    std::string text;
    std::string expected;
    Spans origins;
  };
  const Row rows[] = {
      {"empty", UnicodeForm::kNfc, "", "", {}},
      {"ASCII", UnicodeForm::kNfkd, "aB", "aB", {{0, 1}, {1, 2}}},
      {"decomposed", UnicodeForm::kNfd, "xé", "xe\u0301", {{0, 1}, {1, 3}, {1, 3}}},
      {"composed: the first gives the place",
       UnicodeForm::kNfc,
       "e\u0301x",
       "éx",
       {{0, 1}, {3, 4}}},
      {"put in order",
       UnicodeForm::kNfd,
       "a\u0301\u0323",
       "a\u0323\u0301",
       {{0, 1}, {1, 3}, {3, 5}}},
      {"composed over a mark of a lower class",
       UnicodeForm::kNfc,
       "a\u0315\u0300\u05AE\u0062",
       "à\u05AE\u0315b",  //
       {{0, 1}, {3, 5}, {5, 7}, {7, 8}}},
      {"Hangul", UnicodeForm::kNfc, "\u1100\u1161\u11A8", "각", {{0, 3}}},
      {"a mark alone", UnicodeForm::kNfc, "\u0301e", "\u0301e", {{0, 2}, {2, 3}}},
      {"compatible", UnicodeForm::kNfkc, "ﬁ①", "fi1", {{0, 3}, {0, 3}, {3, 6}}},
      {"never composed", UnicodeForm::kNfc, "\u0958", "\u0915\u093C", {{0, 3}, {0, 3}}},
      {"since Unicode 10",
       UnicodeForm::kNfkc,
       "\U0001F250\U00011938",
       "得\U00011938",  //
       {{0, 4}, {4, 8}}},
  };
  for (const Row& row : rows) {
    const AlignedText result = Changed(row.text, ToUnicodeForm(row.form, row.text));
    EXPECT_EQ(result.text(), row.expected) << row.name;
    EXPECT_EQ(Origins(result), row.origins) << row.name;
  }
}

TEST(UnicodeFormTest, LowerCase) {
  EXPECT_EQ(Changed("AbÉΣς", ToLowerCase("AbÉΣς")).text(), "abéσς");
  EXPECT_EQ(Changed("\u0130x", ToLowerCase("\u0130x")).text(), "i\u0307x");  // becomes two
  EXPECT_EQ(Changed("\u1C89", ToLowerCase("\u1C89")).text(), "\u1C8A");      // since Unicode 16
}

}  // namespace
}  // namespace ddl
