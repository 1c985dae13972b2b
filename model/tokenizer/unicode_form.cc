#include "model/tokenizer/unicode_form.h"

#include <unicode/uchar.h>
#include <unicode/unorm2.h>
#include <unicode/utf16.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "base/check.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

constexpr uint8_t kUnicodeVersion = 9;

bool IsKnown(UChar32 character) {
  UVersionInfo age;
  u_charAge(character, age);
  return age[0] != 0 && age[0] <= kUnicodeVersion;
}

class FormData {
 public:
  explicit FormData(UnicodeForm form) {
    UErrorCode error = U_ZERO_ERROR;
    canonical_ = unorm2_getNFCInstance(&error);
    const bool compatible = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
    decomposing_ = compatible ? unorm2_getNFKCInstance(&error) : canonical_;
    DDL_CHECK(U_SUCCESS(error), u_errorName(error));
  }

  int CombiningClass(char32_t character) const {
    const auto code_point = static_cast<UChar32>(character);
    return IsKnown(code_point) ? unorm2_getCombiningClass(canonical_, code_point) : 0;
  }

  // Calls `add` with each character of the full decomposition.
  template <typename Add>
  void Decompose(char32_t character, Add add) const {
    const auto code_point = static_cast<UChar32>(character);
    std::array<UChar, 64> units;  // the longest has 18
    UErrorCode error = U_ZERO_ERROR;
    const int32_t count =
        character < 0x80 || !IsKnown(code_point)
            ? -1
            : unorm2_getDecomposition(decomposing_, code_point, units.data(), units.size(), &error);
    DDL_CHECK(U_SUCCESS(error), u_errorName(error));
    if (count < 0) return add(character);
    for (int32_t i = 0; i < count;) {
      UChar32 next = 0;
      U16_NEXT(units.data(), i, count, next);
      add(static_cast<char32_t>(next));
    }
  }

  std::optional<char32_t> Compose(char32_t first, char32_t second) const {
    const UChar32 composed =
        unorm2_composePair(canonical_, static_cast<UChar32>(first), static_cast<UChar32>(second));
    if (composed < 0 || !IsKnown(composed)) return std::nullopt;
    return static_cast<char32_t>(composed);
  }

 private:
  const UNormalizer2* canonical_ = nullptr;
  const UNormalizer2* decomposing_ = nullptr;
};

struct Decomposed {
  ChangedCharacter changed;
  int combining_class = 0;
};

// In canonical order.
std::vector<Decomposed> Decompose(const FormData& data, std::string_view text) {
  std::vector<Decomposed> result;
  result.reserve(text.size());
  size_t marks = 0;  // where the marks at the end begin
  const auto sort_marks = [&] {
    std::stable_sort(result.begin() + static_cast<ptrdiff_t>(marks), result.end(),
                     [](const Decomposed& a, const Decomposed& b) {
                       return a.combining_class < b.combining_class;
                     });
  };
  for (size_t position = 0; position < text.size();) {
    int change = 0;
    data.Decompose(TakeCharacter(text, position), [&](char32_t character) {
      const int combining_class = data.CombiningClass(character);
      if (combining_class == 0) sort_marks();
      result.push_back({{character, change}, combining_class});
      if (combining_class == 0) marks = result.size();
      change = 1;
    });
  }
  sort_marks();
  return result;
}

// Joins starters with the marks after them that nothing blocks.
std::vector<ChangedCharacter> Compose(const FormData& data,
                                      const std::vector<Decomposed>& decomposed) {
  std::vector<ChangedCharacter> result;
  result.reserve(decomposed.size());
  std::optional<size_t> starter;  // in `result`
  int last_class = 0;             // of the last mark after it that was kept; 0: none
  for (const Decomposed& next : decomposed) {
    const bool blocked = last_class > 0 && last_class >= next.combining_class;
    if (starter && !blocked) {
      ChangedCharacter& first = result[*starter];
      if (const auto composed = data.Compose(first.character, next.changed.character)) {
        first.character = *composed;
        first.change += next.changed.change - 1;
        continue;
      }
    }
    result.push_back(next.changed);
    if (next.combining_class == 0) {
      starter = result.size() - 1;
      last_class = 0;
    } else if (starter) {
      last_class = next.combining_class;
    }
  }
  return result;
}

// Letters that became cased between ICU's version, Unicode 15, and Rust's, 17.
char32_t NewLowerCase(char32_t character) {
  if (character >= 0x10D50 && character <= 0x10D65) return character + 0x20;
  if (character >= 0x16EA0 && character <= 0x16EB8) return character + 0x1B;
  switch (character) {
    case 0xA7CB:
      return 0x264;
    case 0xA7DC:
      return 0x19B;
    case 0x1C89:
    case 0xA7CC:
    case 0xA7CE:
    case 0xA7D2:
    case 0xA7D4:
    case 0xA7DA:
      return character + 1;
    default:
      return character;
  }
}

}  // namespace

std::vector<ChangedCharacter> ToUnicodeForm(UnicodeForm form, std::string_view text) {
  const FormData data(form);
  const std::vector<Decomposed> decomposed = Decompose(data, text);
  if (form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc) return Compose(data, decomposed);
  std::vector<ChangedCharacter> result;
  result.reserve(decomposed.size());
  for (const Decomposed& next : decomposed) result.push_back(next.changed);
  return result;
}

std::vector<ChangedCharacter> ToLowerCase(std::string_view text) {
  constexpr char32_t kCapitalIWithDot = 0x130;  // the only one that becomes two
  std::vector<ChangedCharacter> result;
  result.reserve(text.size());
  for (size_t position = 0; position < text.size();) {
    const char32_t character = TakeCharacter(text, position);
    if (character == kCapitalIWithDot) {
      result.push_back({'i', 0});
      result.push_back({0x307, 1});
      continue;
    }
    const auto lower = static_cast<char32_t>(u_tolower(static_cast<UChar32>(character)));
    result.push_back({lower != character ? lower : NewLowerCase(character), 0});
  }
  return result;
}

}  // namespace ddl
