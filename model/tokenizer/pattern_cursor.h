#ifndef DDL_MODEL_TOKENIZER_PATTERN_CURSOR_H_
#define DDL_MODEL_TOKENIZER_PATTERN_CURSOR_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/utf8.h"

namespace ddl {

// A place in a regular expression that is being read. The pattern is valid UTF-8.
struct PatternCursor {
  absl::string_view pattern;
  size_t position = 0;  // in bytes

  bool AtEnd() const { return position == pattern.size(); }
  absl::string_view rest() const { return pattern.substr(position); }
  // The byte at the cursor, which is not at the end.
  char Peek() const { return pattern[position]; }
  bool Follows(absl::string_view text) const { return absl::StartsWith(rest(), text); }
  // Moves over `text` where it follows.
  bool Take(absl::string_view text) {
    if (!Follows(text)) return false;
    position += text.size();
    return true;
  }
  // Moves over one character.
  char32_t TakeOne() { return TakeCharacter({pattern.data(), pattern.size()}, position); }

  // INVALID_ARGUMENT: what is wrong here.
  absl::Status Fault(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("at byte ", position, ": ", what));
  }
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_PATTERN_CURSOR_H_
