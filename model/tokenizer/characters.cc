#include "model/tokenizer/characters.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <cstdint>

#include "model/tokenizer/unicode_changes.h"

namespace ddl {
namespace {

bool IsSince(char32_t character, uint8_t version) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(character), age);
  return age[0] > version;
}

bool HasCategory(char32_t character, uint32_t mask) {
  return (U_GET_GC_MASK(static_cast<UChar32>(character)) & mask) != 0;
}

}  // namespace

bool IsWhiteSpace(char32_t character) {
  if (character < 0x80) return character == ' ' || (character >= 0x09 && character <= 0x0D);
  return u_hasBinaryProperty(static_cast<UChar32>(character), UCHAR_WHITE_SPACE) != 0;
}

bool IsNumeric(char32_t character) {
  if (character < 0x80) return character >= '0' && character <= '9';
  if (HasCategory(character, U_GC_N_MASK)) return true;
  // New in Unicode 17.
  if (character >= 0x11DE0 && character <= 0x11DE9) return true;
  if (character >= 0x16FF4 && character <= 0x16FF6) return true;
  const auto changes = UnicodeChanges();
  const auto change =
      std::lower_bound(changes.begin(), changes.end(), character,
                       [](const UnicodeChange& row, char32_t value) { return row.last < value; });
  return change != changes.end() && change->first <= character &&
         change->category_in_16.front() == 'N';
}

bool IsPunctuation(char32_t character) {
  if (character < 0x80) {
    return (character >= 0x21 && character <= 0x2F) || (character >= 0x3A && character <= 0x40) ||
           (character >= 0x5B && character <= 0x60) || (character >= 0x7B && character <= 0x7E);
  }
  // Punctuation then, now a symbol and a mark.
  if (character == 0x166D || character == 0x111C9) return true;
  return HasCategory(character, U_GC_P_MASK) && !IsSince(character, 8);
}

bool IsCombiningMark(char32_t character) {
  if (character == 0x1CF2 || character == 0x1CF3) return true;  // marks then, now letters
  if (character == 0x111C9) return false;                       // punctuation then
  return HasCategory(character, U_GC_M_MASK) && !IsSince(character, 9);
}

}  // namespace ddl
