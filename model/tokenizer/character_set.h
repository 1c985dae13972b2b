#ifndef DDL_MODEL_TOKENIZER_CHARACTER_SET_H_
#define DDL_MODEL_TOKENIZER_CHARACTER_SET_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/string_view.h"

namespace ddl {

// A set of characters in PCRE2's syntax: what stands in square brackets, and fragments that each
// match one more character of the set, for what PCRE2 cannot put there.
struct CharacterSet {
  std::string items;
  std::vector<std::string> fragments;

  void Add(const CharacterSet& other);
  // A fragment that matches one character of the set.
  std::string Fragment() const;
  CharacterSet Negated() const;
  static CharacterSet Intersection(const CharacterSet& a, const CharacterSet& b);
};

// One character, and the characters from `first` to `last`, in or out of square brackets.
std::string Literal(char32_t character);
std::string RangeItem(char32_t first, char32_t last);

// Oniguruma's sets, of Unicode 16 where PCRE2 knows Unicode 14.
//
// A general category by its short name, such as "Lu".
CharacterSet CategorySet(absl::string_view category);
// [:name:] and \p{name}; none where it is not supported.
std::optional<CharacterSet> PosixSet(absl::string_view name);
std::optional<CharacterSet> PropertySet(absl::string_view name);
// Whether the name, of either, is of letters of one case.
bool IsOfOneCase(absl::string_view name);
// Items of \s, of \w within square brackets, and of \w outside of them.
std::string WhiteSpaceItems();
std::string WordItems();
std::string WordItemsOutsideBrackets();

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_CHARACTER_SET_H_
