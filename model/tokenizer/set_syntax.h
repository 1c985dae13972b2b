#ifndef DDL_MODEL_TOKENIZER_SET_SYNTAX_H_
#define DDL_MODEL_TOKENIZER_SET_SYNTAX_H_

#include <cstddef>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/character_set.h"
#include "model/tokenizer/pattern_cursor.h"

namespace ddl {

// Reads what a pattern of Oniguruma's writes for one character, or for one of a set: escapes, and
// sets in square brackets. INVALID_ARGUMENT, naming the place, for what is malformed or not
// supported; the cursor is then anywhere.
class SetSyntax {
 public:
  // `caseless`: under (?i). `cursor` must outlive this.
  SetSyntax(PatternCursor& cursor, bool caseless) : at_(cursor), caseless_(caseless) {}

  // After an opening bracket, up to and with the closing one.
  absl::StatusOr<CharacterSet> Brackets() { return Set(0); }
  // \s and the like, after the backslash. Where something else follows, none, and nothing is read.
  absl::StatusOr<std::optional<CharacterSet>> EscapedSet();
  // \n and the like, after the backslash.
  absl::StatusOr<char32_t> EscapedCharacter();

 private:
  absl::StatusOr<CharacterSet> Set(int depth);
  absl::Status SetItem(int depth, CharacterSet& set);
  absl::StatusOr<char32_t> SetCharacter();
  // [:name:], up to `end`.
  absl::Status ReadPosixSet(absl::string_view name, size_t end, CharacterSet& set);
  // Under (?i) Oniguruma's sets of letters of one case have those of the other case too.
  absl::Status CheckCase(absl::string_view name) const;
  absl::StatusOr<char32_t> Digits(int base, size_t at_least, size_t at_most, char32_t last);

  PatternCursor& at_;
  const bool caseless_;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_SET_SYNTAX_H_
