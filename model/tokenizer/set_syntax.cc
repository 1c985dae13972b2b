#include "model/tokenizer/set_syntax.h"

#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace ddl {
namespace {

constexpr int kMaxDepth = 50;
constexpr char32_t kLastCharacter = 0x10FFFF;

}  // namespace

absl::StatusOr<std::optional<CharacterSet>> SetSyntax::EscapedSet() {
  const char c = at_.Peek();
  const auto take = [&](CharacterSet set) -> std::optional<CharacterSet> {
    ++at_.position;
    return absl::ascii_isupper(c) ? set.Negated() : std::move(set);
  };
  switch (absl::ascii_tolower(c)) {
    case 's':
      return take({WhiteSpaceItems(), {}});
    case 'd':
      return take(CategorySet("Nd"));
    case 'w':
      return take({WordItems(), {}});
    case 'h':
      return take({"0-9A-Fa-f", {}});
    case 'p':
      break;
    default:
      return std::nullopt;
  }
  ++at_.position;
  if (!at_.Take("{")) return at_.Fault("\\p needs a name in braces");
  const bool not_in = at_.Take("^");
  const size_t end = at_.pattern.find('}', at_.position);
  if (end == absl::string_view::npos) return at_.Fault("\\p{ is not closed");
  const absl::string_view name = at_.pattern.substr(at_.position, end - at_.position);
  std::optional<CharacterSet> set = PropertySet(name);
  if (auto status = CheckCase(name); !status.ok()) return status;
  if (!set) return at_.Fault(absl::StrCat("the property \\p{", name, "} is not supported"));
  at_.position = end + 1;
  if (not_in != (c == 'P')) set = set->Negated();
  return set;
}

absl::Status SetSyntax::CheckCase(absl::string_view name) const {
  if (!caseless_ || !IsOfOneCase(name)) return absl::OkStatus();
  return at_.Fault(absl::StrCat("letters of one case, ", name, ", under (?i)"));
}

absl::StatusOr<char32_t> SetSyntax::EscapedCharacter() {
  const char32_t c = at_.TakeOne();
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
      if (!at_.Take("{")) return Digits(16, 1, 2, 0x7F);
      const absl::StatusOr<char32_t> character = Digits(16, 1, 8, kLastCharacter);
      if (character.ok() && !at_.Take("}")) return at_.Fault("\\x{ is not closed");
      return character;
    }
    case '0':
      --at_.position;
      return Digits(8, 1, 3, 0x7F);
    default:
      break;
  }
  if (c < 0x80 && absl::ascii_isalnum(static_cast<unsigned char>(c))) {
    return at_.Fault(absl::StrCat("\\", std::string(1, static_cast<char>(c)), " is not supported"));
  }
  return c;
}

absl::StatusOr<char32_t> SetSyntax::Digits(int base, size_t at_least, size_t at_most,
                                           char32_t last) {
  char32_t value = 0;
  size_t count = 0;
  for (; count < at_most && !at_.AtEnd(); ++count, ++at_.position) {
    const auto c = static_cast<unsigned char>(at_.Peek());
    if (!absl::ascii_isxdigit(c)) break;
    const int digit = absl::ascii_isdigit(c) ? c - '0' : absl::ascii_tolower(c) - 'a' + 10;
    if (digit >= base) break;
    value = value * static_cast<char32_t>(base) + static_cast<char32_t>(digit);
  }
  if (count < at_least || value > last || (value >= 0xD800 && value < 0xE000)) {
    return at_.Fault("no character has this number");
  }
  return value;
}

absl::StatusOr<CharacterSet> SetSyntax::Set(int depth) {
  if (depth > kMaxDepth) return at_.Fault("sets nest too deep");
  const bool not_in = at_.Take("^");
  std::optional<CharacterSet> before;  // what && comes after
  CharacterSet set;
  bool first = true;
  while (true) {
    if (at_.AtEnd()) return at_.Fault("a set is not closed");
    if (at_.Follows("]") && !first) break;
    if (at_.Take("&&")) {
      before = before ? CharacterSet::Intersection(*before, set) : std::move(set);
      set = {};
      continue;
    }
    if (absl::Status status = SetItem(depth, set); !status.ok()) return status;
    first = false;
  }
  ++at_.position;
  if (before) set = CharacterSet::Intersection(*before, set);
  return not_in ? set.Negated() : set;
}

absl::Status SetSyntax::SetItem(int depth, CharacterSet& set) {
  if (at_.Follows("[:")) {
    const size_t end = at_.pattern.find(":]", at_.position + 2);
    if (end != absl::string_view::npos && end - at_.position < 20) {
      return ReadPosixSet(at_.pattern.substr(at_.position + 2, end - at_.position - 2), end + 2,
                          set);
    }
  }
  if (at_.Take("[")) {
    const absl::StatusOr<CharacterSet> inner = Set(depth + 1);
    if (!inner.ok()) return inner.status();
    set.Add(*inner);
    return absl::OkStatus();
  }
  if (at_.Follows("\\") && at_.position + 1 < at_.pattern.size()) {
    ++at_.position;
    absl::StatusOr<std::optional<CharacterSet>> escaped = EscapedSet();
    if (!escaped.ok()) return escaped.status();
    if (*escaped) {
      set.Add(**escaped);
      return absl::OkStatus();
    }
    --at_.position;
  }
  const absl::StatusOr<char32_t> low = SetCharacter();
  if (!low.ok()) return low.status();
  char32_t high = *low;
  const absl::string_view rest = at_.rest();
  if (rest.size() > 1 && rest[0] == '-' && rest[1] != ']' && !absl::StartsWith(rest, "-&&")) {
    ++at_.position;
    const size_t start = at_.position;
    if (at_.Follows("[")) return at_.Fault("a range that ends in a set");
    if (at_.Take("\\") && !at_.AtEnd()) {
      const absl::StatusOr<std::optional<CharacterSet>> escaped = EscapedSet();
      if (!escaped.ok()) return escaped.status();
      if (*escaped) return at_.Fault("a range that ends in a set");
    }
    at_.position = start;
    const absl::StatusOr<char32_t> end = SetCharacter();
    if (!end.ok()) return end.status();
    if (*end < *low) return at_.Fault("a range whose end is before its start");
    high = *end;
  }
  set.items += RangeItem(*low, high);
  return absl::OkStatus();
}

absl::StatusOr<char32_t> SetSyntax::SetCharacter() {
  if (at_.AtEnd()) return at_.Fault("a set is not closed");
  if (!at_.Take("\\")) return at_.TakeOne();
  if (at_.AtEnd()) return at_.Fault("a \\ at the end");
  if (at_.Take("b")) return 0x08;
  return EscapedCharacter();
}

absl::Status SetSyntax::ReadPosixSet(absl::string_view name, size_t end, CharacterSet& set) {
  const bool not_in = absl::ConsumePrefix(&name, "^");
  const std::optional<CharacterSet> named = PosixSet(name);
  if (auto status = CheckCase(name); !status.ok()) return status;
  if (!named) return at_.Fault(absl::StrCat("the set [:", name, ":] is not supported"));
  set.Add(not_in ? named->Negated() : *named);
  at_.position = end;
  return absl::OkStatus();
}

}  // namespace ddl
