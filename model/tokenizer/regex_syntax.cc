#include "model/tokenizer/regex_syntax.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "model/tokenizer/unicode_changes.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

constexpr int kMaxDepth = 50;
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

std::string Literal(char32_t character) {
  return absl::StrCat("\\x{", absl::Hex(static_cast<uint32_t>(character)), "}");
}

std::string RangeItem(char32_t first, char32_t last) {
  return first == last ? Literal(first) : absl::StrCat(Literal(first), "-", Literal(last));
}

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

// A set of characters: what stands in square brackets, and fragments that each match one more
// character of the set, for what PCRE2 cannot put there.
struct CharacterSet {
  std::string items;
  std::vector<std::string> fragments;

  void Add(const CharacterSet& other) {
    items += other.items;
    fragments.insert(fragments.end(), other.fragments.begin(), other.fragments.end());
  }

  // A fragment that matches one character of the set.
  std::string Fragment() const {
    if (fragments.empty()) {
      return items.empty() ? "(?!)" : absl::StrCat("[", items, "]");
    }
    if (items.empty() && fragments.size() == 1) return fragments.front();
    return absl::StrCat("(?:", items.empty() ? "" : absl::StrCat("[", items, "]|"),
                        absl::StrJoin(fragments, "|"), ")");
  }

  CharacterSet Negated() const {
    if (fragments.empty()) {
      return {"", {items.empty() ? "(?s:.)" : absl::StrCat("[^", items, "]")}};
    }
    return {"", {absl::StrCat("(?:(?!", Fragment(), ")(?s:.))")}};
  }

  static CharacterSet Intersection(const CharacterSet& a, const CharacterSet& b) {
    return {"", {absl::StrCat("(?:(?=", b.Fragment(), ")", a.Fragment(), ")")}};
  }
};

CharacterSet Category(absl::string_view category) {
  const std::string property = absl::StrCat("\\p{", category, "}");
  const std::string left = Left(category);
  if (left.empty()) return {absl::StrCat(property, Entered(category)), {}};
  return {Entered(category), {absl::StrCat("(?:(?![", left, "])", property, ")")}};
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
  if (simplified == "digit") return Category("Nd");
  if (simplified == "alnum") {
    CharacterSet set{alphabetic, {}};
    set.Add(Category("Nd"));
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
  if (simplified == "cntrl") return Category("Cc");
  if (simplified == "punct") return Category("P");
  if (simplified == "xdigit") return CharacterSet{"0-9A-Fa-f", {}};
  if (simplified == "word") return CharacterSet{WordItems(), {}};
  if (simplified == "ascii") return CharacterSet{R"(\x{00}-\x{7F})", {}};
  if (simplified == "any") return CharacterSet{RangeItem(0, kLastCharacter), {}};
  return std::nullopt;
}

std::optional<CharacterSet> Property(absl::string_view name) {
  const std::string simplified = Simplified(name);
  for (const absl::string_view category : kShortCategories) {
    if (simplified == absl::AsciiStrToLower(category)) return Category(category);
  }
  const auto category = CategoriesByName().find(simplified);
  if (category != CategoriesByName().end()) return Category(category->second);
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

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Translate() && {
    while (!AtEnd()) {
      if (absl::Status status = Next(); !status.ok()) return status;
    }
    if (groups_.size() > 1) return Fault("a group is not closed");
    CloseOptions();
    return std::move(out_);
  }

 private:
  // A group that is open, or the whole pattern.
  struct Group {
    size_t start = 0;  // in out_
    int options = 0;   // groups opened for options that hold up to the group's end
    bool caseless = false;
  };
  struct Bounds {
    std::string text;    // as PCRE2 writes them
    bool exact = false;  // {n}
  };

  bool AtEnd() const { return position_ == pattern_.size(); }
  bool Follows(absl::string_view text) const {
    return absl::StartsWith(pattern_.substr(position_), text);
  }
  bool Take(absl::string_view text) {
    if (!Follows(text)) return false;
    position_ += text.size();
    return true;
  }
  char32_t TakeOne() { return TakeCharacter({pattern_.data(), pattern_.size()}, position_); }

  absl::Status Fault(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("at byte ", position_, ": ", what));
  }

  // Appends what one character matches, or an assertion: what a quantifier then applies to.
  void Atom(absl::string_view text) {
    atom_ = out_.size();
    absl::StrAppend(&out_, text);
  }

  absl::Status Next() {
    const size_t start = position_;
    const char32_t c = TakeOne();
    switch (c) {
      case '\\':
        return Escape();
      case '[': {
        absl::StatusOr<CharacterSet> set = Set(0);
        if (!set.ok()) return set.status();
        Atom(set->Fragment());
        return absl::OkStatus();
      }
      case '(':
        return Open();
      case ')':
        return Close();
      case '|':
        out_ += '|';
        atom_.reset();
        return absl::OkStatus();
      case '.':
        Atom(".");
        return absl::OkStatus();
      case '^':
      case '$':
        Atom(c == '^' ? "^" : "$");
        return absl::OkStatus();
      case '*':
      case '+':
      case '?':
        position_ = start;
        return Quantify();
      case '{':
        if (const std::optional<Bounds> bounds = TakeBounds()) return Repeat(*bounds);
        break;
      default:
        break;
    }
    Atom(Literal(c));
    return absl::OkStatus();
  }

  absl::Status Quantify() {
    if (!atom_) return Fault("a quantifier with nothing before it");
    out_ += pattern_[position_++];
    if (Take("?")) {
      out_ += '?';
    } else if (Take("+")) {
      out_ += '+';
    }
    return Repeated();
  }

  absl::Status Repeat(const Bounds& bounds) {
    if (!atom_) return Fault("a quantifier with nothing before it");
    out_ += bounds.text;
    if (Follows("?") && !bounds.exact) {
      ++position_;
      out_ += '?';
    }
    return Repeated();
  }

  // A quantifier after a quantifier repeats the repetition.
  absl::Status Repeated() {
    const bool again = Follows("*") || Follows("+") || Follows("?") || FollowBounds();
    if (!again) return absl::OkStatus();
    if (++repetitions_ > kMaxDepth) return Fault("too many quantifiers in a row");
    out_.insert(*atom_, "(?:");
    out_ += ')';
    return absl::OkStatus();
  }

  bool FollowBounds() {
    if (!Follows("{")) return false;
    const size_t start = position_;
    ++position_;
    const bool follows = TakeBounds().has_value();
    position_ = start;
    return follows;
  }

  // After the brace. Moves only over bounds.
  std::optional<Bounds> TakeBounds() {
    const size_t start = position_;
    const auto digits = [this] {
      const size_t begin = position_;
      while (!AtEnd() && absl::ascii_isdigit(pattern_[position_])) ++position_;
      return std::string(pattern_.substr(begin, position_ - begin));
    };
    const std::string low = digits();
    const bool comma = Take(",");
    const std::string high = comma ? digits() : "";
    if ((low.empty() && high.empty()) || !Take("}")) {
      position_ = start;
      return std::nullopt;
    }
    Bounds bounds;
    bounds.exact = !comma;
    bounds.text = absl::StrCat("{", low.empty() ? "0" : low, comma ? "," : "", high, "}");
    return bounds;
  }

  // ---- groups ----

  absl::Status Open() {
    if (groups_.size() > kMaxDepth) return Fault("groups nest too deep");
    if (!Take("?")) return Enter("(");
    if (Take("#")) {
      const size_t end = pattern_.find(')', position_);
      if (end == absl::string_view::npos) return Fault("a comment is not closed");
      position_ = end + 1;
      return absl::OkStatus();
    }
    for (const absl::string_view kind : {":", "=", "!", ">", "<=", "<!"}) {
      if (Take(kind)) return Enter(absl::StrCat("(?", kind));
    }
    if (Follows("<") || Follows("'")) return Fault("named groups are not supported");
    if (Follows("~")) return Fault("absent groups, (?~...), are not supported");
    if (Follows("(")) return Fault("conditions, (?(...)...), are not supported");
    return Options();
  }

  // (?i-m) and (?i-m:...)
  absl::Status Options() {
    std::string options;
    bool caseless = groups_.back().caseless;
    while (!AtEnd()) {
      const char c = pattern_[position_++];
      if (c == ':' || c == ')') {
        const std::string opening = absl::StrCat("(?", options, ":");
        if (c == ':') {
          absl::Status status = Enter(opening);
          groups_.back().caseless = caseless;
          return status;
        }
        out_ += opening;
        ++groups_.back().options;
        groups_.back().caseless = caseless;
        if (++options_ > kMaxDepth) return Fault("too many options");
        atom_.reset();
        return absl::OkStatus();
      }
      if (c == 'i') caseless = options.find('-') == std::string::npos;
      if (c == 'm') {
        options += 's';
      } else if (c == 'i' || c == '-') {
        options += c;
      } else {
        --position_;
        return Fault("a group that begins so is not supported");
      }
    }
    return Fault("a group is not closed");
  }

  absl::Status Enter(absl::string_view opening) {
    groups_.push_back({out_.size(), 0, groups_.back().caseless});
    absl::StrAppend(&out_, opening);
    atom_.reset();
    return absl::OkStatus();
  }

  absl::Status Close() {
    if (groups_.size() == 1) return Fault("a ) without its (");
    CloseOptions();
    atom_ = groups_.back().start;
    groups_.pop_back();
    out_ += ')';
    return absl::OkStatus();
  }

  void CloseOptions() { out_.append(static_cast<size_t>(groups_.back().options), ')'); }

  // ---- escapes ----

  absl::Status Escape() {
    if (AtEnd()) return Fault("a \\ at the end");
    const char c = pattern_[position_];
    if (c == 'w' || c == 'W') {
      ++position_;
      Atom(absl::StrCat(c == 'w' ? "[" : "[^", WordItems(), kLatin1Numbers, "]"));
      return absl::OkStatus();
    }
    absl::StatusOr<std::optional<CharacterSet>> set = EscapedSet();
    if (!set.ok()) return set.status();
    if (*set) {
      Atom((*set)->Fragment());
      return absl::OkStatus();
    }
    if (c >= '1' && c <= '9') {
      ++position_;
      Atom(absl::StrCat("\\", std::string(1, c), "(?:)"));
      return absl::OkStatus();
    }
    const std::string word = absl::StrCat("[", WordItems(), kLatin1Numbers, "]");
    switch (c) {
      case 'A':
      case 'Z':
      case 'z':
      case 'G':
      case 'R':
        ++position_;
        Atom(absl::StrCat("\\", std::string(1, c)));
        return absl::OkStatus();
      case 'b':
        ++position_;
        Atom(absl::StrCat("(?:(?<=", word, ")(?!", word, ")|(?<!", word, ")(?=", word, "))"));
        return absl::OkStatus();
      case 'B':
        ++position_;
        Atom(absl::StrCat("(?:(?<=", word, ")(?=", word, ")|(?<!", word, ")(?!", word, "))"));
        return absl::OkStatus();
      default:
        break;
    }
    const absl::StatusOr<char32_t> character = EscapedCharacter();
    if (!character.ok()) return character.status();
    Atom(Literal(*character));
    return absl::OkStatus();
  }

  // \s and the like, after the backslash. Moves only over a set.
  absl::StatusOr<std::optional<CharacterSet>> EscapedSet() {
    const char c = pattern_[position_];
    const auto take = [&](CharacterSet set) -> std::optional<CharacterSet> {
      ++position_;
      return absl::ascii_isupper(c) ? set.Negated() : std::move(set);
    };
    switch (absl::ascii_tolower(c)) {
      case 's':
        return take({kWhiteSpace, {}});
      case 'd':
        return take(Category("Nd"));
      case 'w':
        return take({WordItems(), {}});
      case 'h':
        return take({"0-9A-Fa-f", {}});
      case 'p':
        break;
      default:
        return std::nullopt;
    }
    ++position_;
    if (!Take("{")) return Fault("\\p needs a name in braces");
    const bool not_in = Take("^");
    const size_t end = pattern_.find('}', position_);
    if (end == absl::string_view::npos) return Fault("\\p{ is not closed");
    const absl::string_view name = pattern_.substr(position_, end - position_);
    std::optional<CharacterSet> set = Property(name);
    if (auto status = CheckCase(name); !status.ok()) return status;
    if (!set) return Fault(absl::StrCat("the property \\p{", name, "} is not supported"));
    position_ = end + 1;
    if (not_in != (c == 'P')) set = set->Negated();
    return set;
  }

  // Under (?i) Oniguruma's sets of letters of one case have those of the other case too.
  absl::Status CheckCase(absl::string_view name) const {
    if (!groups_.back().caseless) return absl::OkStatus();
    const std::string simplified = Simplified(name);
    for (const absl::string_view one_case :
         {"lu", "ll", "lt", "upper", "uppercase", "uppercaseletter", "lower", "lowercase",
          "lowercaseletter", "titlecaseletter"}) {
      if (simplified == one_case) {
        return Fault(absl::StrCat("letters of one case, ", name, ", under (?i)"));
      }
    }
    return absl::OkStatus();
  }

  // After the backslash.
  absl::StatusOr<char32_t> EscapedCharacter() {
    const char32_t c = TakeOne();
    switch (c) {
      case 'n':
        return '\n';
      case 't':
        return '\t';
      case 'r':
        return '\r';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      case 'e':
        return 0x1B;
      case 'u':
        return Digits(16, 4, 4, kLastCharacter);
      case 'x': {
        if (!Take("{")) return Digits(16, 1, 2, 0x7F);
        const absl::StatusOr<char32_t> character = Digits(16, 1, 8, kLastCharacter);
        if (character.ok() && !Take("}")) return Fault("\\x{ is not closed");
        return character;
      }
      case '0':
        --position_;
        return Digits(8, 1, 3, 0x7F);
      default:
        break;
    }
    if (c < 0x80 && absl::ascii_isalnum(static_cast<unsigned char>(c))) {
      return Fault(absl::StrCat("\\", std::string(1, static_cast<char>(c)), " is not supported"));
    }
    return c;
  }

  absl::StatusOr<char32_t> Digits(int base, size_t at_least, size_t at_most, char32_t last) {
    char32_t value = 0;
    size_t count = 0;
    for (; count < at_most && !AtEnd(); ++count, ++position_) {
      const auto c = static_cast<unsigned char>(pattern_[position_]);
      if (!absl::ascii_isxdigit(c)) break;
      const int digit = absl::ascii_isdigit(c) ? c - '0' : absl::ascii_tolower(c) - 'a' + 10;
      if (digit >= base) break;
      value = value * static_cast<char32_t>(base) + static_cast<char32_t>(digit);
    }
    if (count < at_least || value > last || (value >= 0xD800 && value < 0xE000)) {
      return Fault("no character has this number");
    }
    return value;
  }

  // ---- sets ----

  // After the opening bracket, up to and with the closing one.
  absl::StatusOr<CharacterSet> Set(int depth) {
    if (depth > kMaxDepth) return Fault("sets nest too deep");
    const bool not_in = Take("^");
    std::optional<CharacterSet> before;  // what && comes after
    CharacterSet set;
    bool first = true;
    while (true) {
      if (AtEnd()) return Fault("a set is not closed");
      if (Follows("]") && !first) break;
      if (Take("&&")) {
        before = before ? CharacterSet::Intersection(*before, set) : std::move(set);
        set = {};
        continue;
      }
      if (absl::Status status = SetItem(depth, set); !status.ok()) return status;
      first = false;
    }
    ++position_;
    if (before) set = CharacterSet::Intersection(*before, set);
    return not_in ? set.Negated() : set;
  }

  absl::Status SetItem(int depth, CharacterSet& set) {
    if (Follows("[:")) {
      const size_t end = pattern_.find(":]", position_ + 2);
      if (end != absl::string_view::npos && end - position_ < 20) {
        return PosixSet(pattern_.substr(position_ + 2, end - position_ - 2), end + 2, set);
      }
    }
    if (Take("[")) {
      const absl::StatusOr<CharacterSet> inner = Set(depth + 1);
      if (!inner.ok()) return inner.status();
      set.Add(*inner);
      return absl::OkStatus();
    }
    if (Follows("\\") && position_ + 1 < pattern_.size()) {
      ++position_;
      absl::StatusOr<std::optional<CharacterSet>> escaped = EscapedSet();
      if (!escaped.ok()) return escaped.status();
      if (*escaped) {
        set.Add(**escaped);
        return absl::OkStatus();
      }
      --position_;
    }
    const absl::StatusOr<char32_t> low = SetCharacter();
    if (!low.ok()) return low.status();
    char32_t high = *low;
    const absl::string_view rest = pattern_.substr(position_);
    if (rest.size() > 1 && rest[0] == '-' && rest[1] != ']' && !absl::StartsWith(rest, "-&&")) {
      ++position_;
      const size_t start = position_;
      if (Follows("[")) return Fault("a range that ends in a set");
      if (Take("\\") && !AtEnd()) {
        const absl::StatusOr<std::optional<CharacterSet>> escaped = EscapedSet();
        if (!escaped.ok()) return escaped.status();
        if (*escaped) return Fault("a range that ends in a set");
      }
      position_ = start;
      const absl::StatusOr<char32_t> end = SetCharacter();
      if (!end.ok()) return end.status();
      if (*end < *low) return Fault("a range whose end is before its start");
      high = *end;
    }
    set.items += RangeItem(*low, high);
    return absl::OkStatus();
  }

  absl::StatusOr<char32_t> SetCharacter() {
    if (AtEnd()) return Fault("a set is not closed");
    if (!Take("\\")) return TakeOne();
    if (AtEnd()) return Fault("a \\ at the end");
    if (Take("b")) return 0x08;
    return EscapedCharacter();
  }

  absl::Status PosixSet(absl::string_view name, size_t end, CharacterSet& set) {
    const bool not_in = absl::ConsumePrefix(&name, "^");
    std::optional<CharacterSet> named = NamedSet(name);
    if (name == "punct") named->Add(Category("S"));
    if (auto status = CheckCase(name); !status.ok()) return status;
    if (!named) return Fault(absl::StrCat("the set [:", name, ":] is not supported"));
    set.Add(not_in ? named->Negated() : *named);
    position_ = end;
    return absl::OkStatus();
  }

  const absl::string_view pattern_;
  size_t position_ = 0;
  std::string out_;
  std::vector<Group> groups_ = {{}};
  std::optional<size_t> atom_;  // where in out_ what a quantifier applies to begins
  int options_ = 0;
  int repetitions_ = 0;
};

}  // namespace

absl::StatusOr<std::string> OnigurumaToPcre2(std::string_view pattern) {
  if (const std::optional<size_t> offset = FindInvalidUtf8(pattern)) {
    return absl::InvalidArgumentError(absl::StrCat("at byte ", *offset, ": not valid UTF-8"));
  }
  return Translator({pattern.data(), pattern.size()}).Translate();
}

std::string EscapeRegex(std::string_view text) {
  std::string pattern;
  for (size_t position = 0; position < text.size();) {
    pattern += Literal(TakeCharacter(text, position));
  }
  return pattern;
}

std::string WhiteSpaceItems() { return kWhiteSpace; }

std::string WordItems() {
  return absl::StrCat(R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})", Entered("L"), Entered("M"),
                      Entered("Nd"), Entered("Pc"));
}

}  // namespace ddl
