#ifndef DDL_MODEL_TOKENIZER_REGEX_SYNTAX_H_
#define DDL_MODEL_TOKENIZER_REGEX_SYNTAX_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ddl {

// Rewrites a regular expression of tokenizer.json, which Hugging Face's tokenizers give to
// Oniguruma (Ruby's syntax, Unicode 16), for PCRE2 with the options UTF and MULTILINE, such that it
// matches the same. What both write alike but mean differently is spelled out:
//   \s \d \w \b \h \v, [[:alpha:]] and the like, \p{...}: Oniguruma's sets, Unicode 16's categories
//   [a[b]] [a&&b]: nested and intersected sets
//   (?m): a dot that matches newlines too; (?i) within a group: up to the group's end
//   {n,m}+ {n}?: a repeated repetition, not possessive or lazy; {,n}
//
// INVALID_ARGUMENT, naming the place and the construct, for what PCRE2 cannot do or no tokenizer
// needs: (?x), \K, \X, \g, named groups, conditions, absent groups, callouts, \M-x, bytes above
// 0x7F, and letters of one case under (?i). Differences that remain: scripts and binary properties
// are Unicode 14's, but for \p{Han}; and
// (?i) matches one character by one character, not "ss" by "ß".
absl::StatusOr<std::string> OnigurumaToPcre2(std::string_view pattern);

// A pattern that matches `text` and nothing else.
std::string EscapeRegex(std::string_view text);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_REGEX_SYNTAX_H_
