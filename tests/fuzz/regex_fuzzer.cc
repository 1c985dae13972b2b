// Any bytes as a pattern of tokenizer.json, a newline, and a text: refused, given up, or matches
// that cover the text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/tokenizer/pattern_matches.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t newline = bytes.find('\n');
  if (newline == std::string_view::npos || size - newline > 200) return 0;
  const auto regex = ddl::Regex::FromOniguruma(bytes.substr(0, newline));
  const std::string_view text = bytes.substr(newline + 1);
  if (!regex.ok() || ddl::FindInvalidUtf8(text)) return 0;
  ddl::RegexMatcher matcher(*regex);
  const auto spans = ddl::FindMatches(matcher, text);
  if (!spans.ok()) return 0;
  size_t done = 0;
  for (const ddl::PatternSpan& span : *spans) {
    if (span.start != done || span.end < span.start) std::abort();
    done = span.end;
  }
  if (done != text.size()) std::abort();
  return 0;
}
