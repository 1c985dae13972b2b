#include "model/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace ddl {
namespace {

using namespace std::string_literals;

struct Row {
  const char* name;
  std::string bytes;
  std::optional<size_t> invalid_at;
  std::string text;  // what AppendWholeCharacters makes of the bytes
  size_t held = 0;   // bytes it leaves
};

// Expected texts are those of Python's bytes.decode("utf-8", errors="replace").
const Row kRows[] = {
    {"empty", "", std::nullopt, ""},
    {"ASCII and NUL", "a\0b"s, std::nullopt, "a\0b"s},
    {"a character of each length", "a\u00e9\u20ac\U0001F600", std::nullopt, "aé€😀"},
    {"the ends of each length", "\x7F\u0080\u07FF\u0800\uD7FF\uE000\uFFFF\U00010000\U0010FFFF",
     std::nullopt, "\x7F\u0080\u07FF\u0800\uD7FF\uE000\uFFFF\U00010000\U0010FFFF"},
    {"after 8 and more bytes of ASCII", "0123456789abcdef\xFFx", 16, "0123456789abcdef\uFFFDx"},
    {"a continuation byte alone", "a\x80z", 1, "a\uFFFDz"},
    {"bytes that begin nothing", "\xC0\xC1\xF5\xFF", 0, "\uFFFD\uFFFD\uFFFD\uFFFD"},
    {"overlong NUL", "\xC0\x80", 0, "\uFFFD\uFFFD"},
    {"overlong of 3 bytes", "\xE0\x9F\x80", 0, "\uFFFD\uFFFD\uFFFD"},
    {"overlong of 4 bytes", "\xF0\x8F\x80\x80", 0, "\uFFFD\uFFFD\uFFFD\uFFFD"},
    {"a surrogate", "\xED\xA0\x80", 0, "\uFFFD\uFFFD\uFFFD"},
    {"past U+10FFFF", "\xF4\x90\x80\x80", 0, "\uFFFD\uFFFD\uFFFD\uFFFD"},
    {"2 of 2, interrupted", "\xC3z", 0, "\uFFFDz"},
    {"2 of 3, interrupted", "\xE2\x82z", 0, "\uFFFDz"},
    {"3 of 4, interrupted", "\xF0\x9F\x98z", 0, "\uFFFDz"},
    {"3 of 4, interrupted by a character", "\xF0\x9F\x98\u00e9", 0, "\uFFFDé"},
    {"1 of 2, unfinished", "a\xC3", 1, "a", 1},
    {"2 of 3, unfinished", "a\xE2\x82", 1, "a", 2},
    {"3 of 4, unfinished", "a\xF0\x9F\x98", 1, "a", 3},
    {"two unfinished", "\xF0\x9F\xF0\x9F", 0, "\uFFFD", 2},
};

TEST(Utf8Test, FindsTheFirstInvalidByte) {
  for (const Row& row : kRows) EXPECT_EQ(FindInvalidUtf8(row.bytes), row.invalid_at) << row.name;
}

TEST(Utf8Test, ReplacesMaximalSubparts) {
  for (const Row& row : kRows) {
    std::string text;
    const size_t used = AppendWholeCharacters(row.bytes, text);
    EXPECT_EQ(text, row.text) << row.name;
    EXPECT_EQ(row.bytes.size() - used, row.held) << row.name;
  }
}

// Every string of up to 4 bytes from the edges of all ranges: what comes byte by byte is what
// comes at once, and a text is valid exactly when nothing is replaced or held.
TEST(Utf8Test, PiecesMakeTheSameTextAsTheWhole) {
  const std::string edges =
      "\x41\x7F\x80\x8F\x90\x9F\xA0\xBF\xC0\xC2\xDF\xE0\xE1\xED\xEE\xEF\xF0\xF1\xF4\xF5\xFF";
  const size_t n = edges.size();
  for (size_t code = 0; code < n * n * n * n; ++code) {
    const std::string bytes = {edges[code % n], edges[code / n % n], edges[code / n / n % n],
                               edges[code / n / n / n]};
    std::string whole;
    const size_t used = AppendWholeCharacters(bytes, whole);
    std::string text;
    std::string pending;
    for (const char byte : bytes) {
      pending += byte;
      pending.erase(0, AppendWholeCharacters(pending, text));
      ASSERT_LE(pending.size(), 3u);
    }
    ASSERT_EQ(text, whole) << code;
    ASSERT_EQ(pending, bytes.substr(used)) << code;
    ASSERT_EQ(!FindInvalidUtf8(bytes).has_value(), text == bytes) << code;
    ASSERT_FALSE(FindInvalidUtf8(text).has_value()) << code;
  }
}

}  // namespace
}  // namespace ddl
