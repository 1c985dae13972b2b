#include "model/tokenizer/character_set.h"

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/tokenizer/unicode_changes.h"

namespace ddl {
namespace {

constexpr char32_t kLastCharacter = 0x10FFFF;

// Oniguruma's \s, the property White_Space. PCRE2's own also has U+180E.
constexpr char kWhiteSpace[] =
    R"(\x{09}-\x{0D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F})"
    R"(\x{3000})";

// What became alphabetic, and a lower case letter, in Unicode 15 and 16 besides new letters.
constexpr char kNewAlphabetic[] =
    R"(\x{363}-\x{36F}\x{897}\x{C04}\x{CF3}\x{F82}-\x{F83}\x{1DD3}-\x{1DE6}\x{10D69}\x{10EFC})"
    R"(\x{11080}-\x{11081}\x{11241}\x{113B8}-\x{113C0}\x{113C2}\x{113C5}\x{113C7}-\x{113CA})"
    R"(\x{113CC}-\x{113CD}\x{11F00}-\x{11F01}\x{11F03}\x{11F34}-\x{11F3A}\x{11F3E}-\x{11F40})"
    R"(\x{1611E}-\x{1612E}\x{1E08F})";
constexpr char kNewLowerCase[] = R"(\x{10FC}\x{A7F2}-\x{A7F4}\x{AB69}\x{1E030}-\x{1E06D})";

// Outside of square brackets Oniguruma also takes Latin-1's other numbers for word characters.
constexpr char kLatin1Numbers[] = R"(\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE})";

// Whether a general category, "Lu", is a part of another, "L".
bool Begins(std::string_view category, absl::string_view other) {
  return absl::StartsWith(absl::string_view(category.data(), category.size()), other);
}

// The code points that entered, or left, a general category after PCRE2's Unicode version.
std::string Entered(absl::string_view category) {
  std::string items;
  for (const UnicodeChange& change : UnicodeChanges()) {
    if (Begins(change.category_in_16, category) && !Begins(change.category_in_14, category)) {
      items += RangeItem(change.first, change.last);
    }
  }
  return items;
}

std::string Left(absl::string_view category) {
  std::string items;
  for (const UnicodeChange& change : UnicodeChanges()) {
    if (Begins(change.category_in_14, category) && !Begins(change.category_in_16, category)) {
      items += RangeItem(change.first, change.last);
    }
  }
  return items;
}

// General categories by their long names, as Oniguruma compares names: without case, spaces,
// hyphens and low lines.
const absl::flat_hash_map<std::string, std::string>& CategoriesByName() {
  static const auto& categories = *new absl::flat_hash_map<std::string, std::string>{
      {"letter", "L"},
      {"uppercaseletter", "Lu"},
      {"lowercaseletter", "Ll"},
      {"titlecaseletter", "Lt"},
      {"modifierletter", "Lm"},
      {"otherletter", "Lo"},
      {"mark", "M"},
      {"combiningmark", "M"},
      {"nonspacingmark", "Mn"},
      {"spacingmark", "Mc"},
      {"enclosingmark", "Me"},
      {"number", "N"},
      {"decimalnumber", "Nd"},
      {"letternumber", "Nl"},
      {"othernumber", "No"},
      {"punctuation", "P"},
      {"connectorpunctuation", "Pc"},
      {"dashpunctuation", "Pd"},
      {"openpunctuation", "Ps"},
      {"closepunctuation", "Pe"},
      {"initialpunctuation", "Pi"},
      {"finalpunctuation", "Pf"},
      {"otherpunctuation", "Po"},
      {"symbol", "S"},
      {"mathsymbol", "Sm"},
      {"currencysymbol", "Sc"},
      {"modifiersymbol", "Sk"},
      {"othersymbol", "So"},
      {"separator", "Z"},
      {"spaceseparator", "Zs"},
      {"lineseparator", "Zl"},
      {"paragraphseparator", "Zp"},
      {"other", "C"},
      {"control", "Cc"},
      {"format", "Cf"},
      {"surrogate", "Cs"},
      {"privateuse", "Co"},
      {"unassigned", "Cn"},
  };
  return categories;
}

constexpr absl::string_view kShortCategories[] = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl",
    "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk",
    "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cs", "Co", "Cn"};

// Scripts and binary properties that PCRE2 10.42 knows by these names, simplified as above.
constexpr absl::string_view kScripts[] = {
    "Arabic",     "Armenian", "Bengali",   "Bopomofo",  "Common",   "Cyrillic",
    "Devanagari", "Georgian", "Greek",     "Gujarati",  "Gurmukhi", "Hangul",
    "Hebrew",     "Hiragana", "Inherited", "Kannada",   "Katakana", "Khmer",
    "Lao",        "Latin",    "Malayalam", "Mongolian", "Myanmar",  "Oriya",
    "Sinhala",    "Tamil",    "Telugu",    "Thai",      "Tibetan",  "Ethiopic"};
constexpr absl::string_view kBinaryProperties[] = {"Emoji",
                                                   "Emoji_Presentation",
                                                   "Emoji_Modifier",
                                                   "Emoji_Component",
                                                   "Extended_Pictographic",
                                                   "Ideographic",
                                                   "ASCII_Hex_Digit",
                                                   "Hex_Digit",
                                                   "Math",
                                                   "Dash",
                                                   "Variation_Selector"};

std::string Simplified(absl::string_view name) {
  std::string result;
  for (const char c : name) {
    if (c != ' ' && c != '-' && c != '_') result.push_back(absl::ascii_tolower(c));
  }
  return result;
}

// Sets that are neither a category nor a script, by the names of POSIX and of \p.
std::optional<CharacterSet> NamedSet(absl::string_view simplified) {
  const std::string alphabetic = absl::StrCat(R"(\p{Alphabetic})", Entered("L"), kNewAlphabetic);
  if (simplified == "alpha" || simplified == "alphabetic") return CharacterSet{alphabetic, {}};
  if (simplified == "digit") return CategorySet("Nd");
  if (simplified == "alnum") {
    CharacterSet set{alphabetic, {}};
    set.Add(CategorySet("Nd"));
    return set;
  }
  if (simplified == "upper" || simplified == "uppercase") {
    return CharacterSet{absl::StrCat(R"(\p{Uppercase})", Entered("Lu")), {}};
  }
  if (simplified == "lower" || simplified == "lowercase") {
    return CharacterSet{absl::StrCat(R"(\p{Lowercase})", Entered("Ll"), kNewLowerCase), {}};
  }
  if (simplified == "space" || simplified == "whitespace") return CharacterSet{kWhiteSpace, {}};
  if (simplified == "blank") return CharacterSet{R"(\x{09}\p{Zs})", {}};
  if (simplified == "cntrl") return CategorySet("Cc");
  if (simplified == "punct") return CategorySet("P");
  if (simplified == "xdigit") return CharacterSet{"0-9A-Fa-f", {}};
  if (simplified == "word") return CharacterSet{WordItems(), {}};
  if (simplified == "ascii") return CharacterSet{R"(\x{00}-\x{7F})", {}};
  if (simplified == "any") return CharacterSet{RangeItem(0, kLastCharacter), {}};
  return std::nullopt;
}

}  // namespace

std::string Literal(char32_t character) {
  return absl::StrCat("\\x{", absl::Hex(static_cast<uint32_t>(character)), "}");
}

std::string RangeItem(char32_t first, char32_t last) {
  return first == last ? Literal(first) : absl::StrCat(Literal(first), "-", Literal(last));
}

void CharacterSet::Add(const CharacterSet& other) {
  items += other.items;
  fragments.insert(fragments.end(), other.fragments.begin(), other.fragments.end());
}

std::string CharacterSet::Fragment() const {
  if (fragments.empty()) {
    return items.empty() ? "(?!)" : absl::StrCat("[", items, "]");
  }
  if (items.empty() && fragments.size() == 1) return fragments.front();
  return absl::StrCat("(?:", items.empty() ? "" : absl::StrCat("[", items, "]|"),
                      absl::StrJoin(fragments, "|"), ")");
}

CharacterSet CharacterSet::Negated() const {
  if (fragments.empty()) {
    return {"", {items.empty() ? "(?s:.)" : absl::StrCat("[^", items, "]")}};
  }
  return {"", {absl::StrCat("(?:(?!", Fragment(), ")(?s:.))")}};
}

CharacterSet CharacterSet::Intersection(const CharacterSet& a, const CharacterSet& b) {
  return {"", {absl::StrCat("(?:(?=", b.Fragment(), ")", a.Fragment(), ")")}};
}

CharacterSet CategorySet(absl::string_view category) {
  const std::string property = absl::StrCat("\\p{", category, "}");
  const std::string left = Left(category);
  if (left.empty()) return {absl::StrCat(property, Entered(category)), {}};
  return {Entered(category), {absl::StrCat("(?:(?![", left, "])", property, ")")}};
}

std::optional<CharacterSet> PosixSet(absl::string_view name) {
  std::optional<CharacterSet> set = NamedSet(name);
  if (name == "punct") set->Add(CategorySet("S"));
  return set;
}

std::optional<CharacterSet> PropertySet(absl::string_view name) {
  const std::string simplified = Simplified(name);
  for (const absl::string_view category : kShortCategories) {
    if (simplified == absl::AsciiStrToLower(category)) return CategorySet(category);
  }
  const auto category = CategoriesByName().find(simplified);
  if (category != CategoriesByName().end()) return CategorySet(category->second);
  if (auto set = NamedSet(simplified)) return set;
  if (simplified == "han") {
    return CharacterSet{R"(\p{sc:Han}\x{2B739}\x{2EBF0}-\x{2EE5D}\x{31350}-\x{323AF})", {}};
  }
  for (const absl::string_view script : kScripts) {
    if (simplified == Simplified(script)) {
      return CharacterSet{absl::StrCat("\\p{sc:", script, "}"), {}};
    }
  }
  for (const absl::string_view property : kBinaryProperties) {
    if (simplified == Simplified(property))
      return CharacterSet{absl::StrCat("\\p{", property, "}"), {}};
  }
  return std::nullopt;
}

bool IsOfOneCase(absl::string_view name) {
  const std::string simplified = Simplified(name);
  for (const absl::string_view one_case :
       {"lu", "ll", "lt", "upper", "uppercase", "uppercaseletter", "lower", "lowercase",
        "lowercaseletter", "titlecaseletter"}) {
    if (simplified == one_case) return true;
  }
  return false;
}

std::string WhiteSpaceItems() { return kWhiteSpace; }

std::string WordItems() {
  return absl::StrCat(R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})", Entered("L"), Entered("M"),
                      Entered("Nd"), Entered("Pc"));
}

std::string WordItemsOutsideBrackets() { return absl::StrCat(WordItems(), kLatin1Numbers); }

}  // namespace ddl
