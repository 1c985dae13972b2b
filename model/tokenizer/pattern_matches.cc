#include "model/tokenizer/pattern_matches.h"

#include <optional>

#include "model/tokenizer/utf8.h"

namespace ddl {

absl::StatusOr<std::vector<PatternSpan>> FindMatches(RegexMatcher& matcher, std::string_view text) {
  std::vector<PatternSpan> spans;
  if (text.empty()) return std::vector<PatternSpan>{{0, 0, false}};
  size_t done = 0;
  size_t position = 0;
  std::optional<size_t> last_end;
  while (position <= text.size()) {
    const auto match = matcher.Find(text, position);
    if (!match.ok()) return match.status();
    if (!*match) break;
    const auto [start, end] = **match;
    if (start == end && last_end == end) {
      // No empty match right after a match: it would be found for ever.
      position = position < text.size() ? NextCharacter(text, position) : position + 1;
      continue;
    }
    if (done != start) spans.push_back({done, start, false});
    spans.push_back({start, end, true});
    done = end;
    position = end;
    last_end = end;
  }
  if (done != text.size()) spans.push_back({done, text.size(), false});
  return spans;
}

std::vector<PatternSpan> FindCharacters(absl::FunctionRef<bool(char32_t)> matches,
                                        std::string_view text) {
  std::vector<PatternSpan> spans;
  size_t done = 0;
  for (size_t position = 0; position < text.size();) {
    const size_t start = position;
    if (!matches(TakeCharacter(text, position))) continue;
    if (done < start) spans.push_back({done, start, false});
    spans.push_back({start, position, true});
    done = position;
  }
  if (done < text.size() || text.empty()) spans.push_back({done, text.size(), false});
  return spans;
}

}  // namespace ddl
