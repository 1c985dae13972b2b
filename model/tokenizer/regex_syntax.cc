#include "model/tokenizer/regex_syntax.h"

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/character_set.h"
#include "model/tokenizer/pattern_cursor.h"
#include "model/tokenizer/set_syntax.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

constexpr int kMaxDepth = 50;

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : at_{pattern} {}

  absl::StatusOr<std::string> Translate() && {
    while (!at_.AtEnd()) {
      if (absl::Status status = Next(); !status.ok()) return status;
    }
    if (groups_.size() > 1) return at_.Fault("a group is not closed");
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

  SetSyntax Sets() { return {at_, groups_.back().caseless}; }

  // Appends what one character matches, or an assertion: what a quantifier then applies to.
  void Atom(absl::string_view text) {
    atom_ = out_.size();
    absl::StrAppend(&out_, text);
  }

  absl::Status Next() {
    const size_t start = at_.position;
    const char32_t c = at_.TakeOne();
    switch (c) {
      case '\\':
        return Escape();
      case '[': {
        absl::StatusOr<CharacterSet> set = Sets().Brackets();
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
        at_.position = start;
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
    if (!atom_) return at_.Fault("a quantifier with nothing before it");
    out_ += at_.pattern[at_.position++];
    if (at_.Take("?")) {
      out_ += '?';
    } else if (at_.Take("+")) {
      out_ += '+';
    }
    return Repeated();
  }

  absl::Status Repeat(const Bounds& bounds) {
    if (!atom_) return at_.Fault("a quantifier with nothing before it");
    out_ += bounds.text;
    if (at_.Follows("?") && !bounds.exact) {
      ++at_.position;
      out_ += '?';
    }
    return Repeated();
  }

  // A quantifier after a quantifier repeats the repetition.
  absl::Status Repeated() {
    const bool again = at_.Follows("*") || at_.Follows("+") || at_.Follows("?") || FollowBounds();
    if (!again) return absl::OkStatus();
    if (++repetitions_ > kMaxDepth) return at_.Fault("too many quantifiers in a row");
    out_.insert(*atom_, "(?:");
    out_ += ')';
    return absl::OkStatus();
  }

  bool FollowBounds() {
    if (!at_.Follows("{")) return false;
    const size_t start = at_.position;
    ++at_.position;
    const bool follows = TakeBounds().has_value();
    at_.position = start;
    return follows;
  }

  // After the brace. Moves only over bounds.
  std::optional<Bounds> TakeBounds() {
    const size_t start = at_.position;
    const auto digits = [this] {
      const size_t begin = at_.position;
      while (!at_.AtEnd() && absl::ascii_isdigit(at_.Peek())) ++at_.position;
      return std::string(at_.pattern.substr(begin, at_.position - begin));
    };
    const std::string low = digits();
    const bool comma = at_.Take(",");
    const std::string high = comma ? digits() : "";
    if ((low.empty() && high.empty()) || !at_.Take("}")) {
      at_.position = start;
      return std::nullopt;
    }
    Bounds bounds;
    bounds.exact = !comma;
    bounds.text = absl::StrCat("{", low.empty() ? "0" : low, comma ? "," : "", high, "}");
    return bounds;
  }

  // ---- groups ----

  absl::Status Open() {
    if (groups_.size() > kMaxDepth) return at_.Fault("groups nest too deep");
    if (!at_.Take("?")) return Enter("(");
    if (at_.Take("#")) {
      const size_t end = at_.pattern.find(')', at_.position);
      if (end == absl::string_view::npos) return at_.Fault("a comment is not closed");
      at_.position = end + 1;
      return absl::OkStatus();
    }
    for (const absl::string_view kind : {":", "=", "!", ">", "<=", "<!"}) {
      if (at_.Take(kind)) return Enter(absl::StrCat("(?", kind));
    }
    if (at_.Follows("<") || at_.Follows("'")) return at_.Fault("named groups are not supported");
    if (at_.Follows("~")) return at_.Fault("absent groups, (?~...), are not supported");
    if (at_.Follows("(")) return at_.Fault("conditions, (?(...)...), are not supported");
    return Options();
  }

  // (?i-m) and (?i-m:...)
  absl::Status Options() {
    std::string options;
    bool caseless = groups_.back().caseless;
    while (!at_.AtEnd()) {
      const char c = at_.pattern[at_.position++];
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
        if (++options_ > kMaxDepth) return at_.Fault("too many options");
        atom_.reset();
        return absl::OkStatus();
      }
      if (c == 'i') caseless = options.find('-') == std::string::npos;
      if (c == 'm') {
        options += 's';
      } else if (c == 'i' || c == '-') {
        options += c;
      } else {
        --at_.position;
        return at_.Fault("a group that begins so is not supported");
      }
    }
    return at_.Fault("a group is not closed");
  }

  absl::Status Enter(absl::string_view opening) {
    groups_.push_back({out_.size(), 0, groups_.back().caseless});
    absl::StrAppend(&out_, opening);
    atom_.reset();
    return absl::OkStatus();
  }

  absl::Status Close() {
    if (groups_.size() == 1) return at_.Fault("a ) without its (");
    CloseOptions();
    atom_ = groups_.back().start;
    groups_.pop_back();
    out_ += ')';
    return absl::OkStatus();
  }

  void CloseOptions() { out_.append(static_cast<size_t>(groups_.back().options), ')'); }

  // ---- escapes ----

  absl::Status Escape() {
    if (at_.AtEnd()) return at_.Fault("a \\ at the end");
    const char c = at_.Peek();
    if (c == 'w' || c == 'W') {
      ++at_.position;
      Atom(absl::StrCat(c == 'w' ? "[" : "[^", WordItemsOutsideBrackets(), "]"));
      return absl::OkStatus();
    }
    absl::StatusOr<std::optional<CharacterSet>> set = Sets().EscapedSet();
    if (!set.ok()) return set.status();
    if (*set) {
      Atom((*set)->Fragment());
      return absl::OkStatus();
    }
    if (c >= '1' && c <= '9') {
      ++at_.position;
      Atom(absl::StrCat("\\", std::string(1, c), "(?:)"));
      return absl::OkStatus();
    }
    const std::string word = absl::StrCat("[", WordItemsOutsideBrackets(), "]");
    switch (c) {
      case 'A':
      case 'Z':
      case 'z':
      case 'G':
      case 'R':
        ++at_.position;
        Atom(absl::StrCat("\\", std::string(1, c)));
        return absl::OkStatus();
      case 'b':
        ++at_.position;
        Atom(absl::StrCat("(?:(?<=", word, ")(?!", word, ")|(?<!", word, ")(?=", word, "))"));
        return absl::OkStatus();
      case 'B':
        ++at_.position;
        Atom(absl::StrCat("(?:(?<=", word, ")(?=", word, ")|(?<!", word, ")(?!", word, "))"));
        return absl::OkStatus();
      default:
        break;
    }
    const absl::StatusOr<char32_t> character = Sets().EscapedCharacter();
    if (!character.ok()) return character.status();
    Atom(Literal(*character));
    return absl::OkStatus();
  }

  PatternCursor at_;
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

}  // namespace ddl
