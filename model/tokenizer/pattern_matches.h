#ifndef DDL_MODEL_TOKENIZER_PATTERN_MATCHES_H_
#define DDL_MODEL_TOKENIZER_PATTERN_MATCHES_H_

#include <cstddef>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/regex.h"

namespace ddl {

// The bytes [start, end) of a text, matched by a pattern or between two matches.
struct PatternSpan {
  size_t start = 0;
  size_t end = 0;
  bool is_match = false;
};

// The spans of a whole text, in order and without gaps. Matches may be empty; a text that is empty
// is one span without a match. RESOURCE_EXHAUSTED when the pattern gives up.
absl::StatusOr<std::vector<PatternSpan>> FindMatches(RegexMatcher& matcher, std::string_view text);
// The same for single characters.
std::vector<PatternSpan> FindCharacters(absl::FunctionRef<bool(char32_t)> matches,
                                        std::string_view text);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_PATTERN_MATCHES_H_
