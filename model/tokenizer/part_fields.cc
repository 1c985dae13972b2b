#include "model/tokenizer/part_fields.h"

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "base/strict_json.h"
#include "model/tokenizer/json_fields.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

using Json = nlohmann::json;

}  // namespace

absl::Status ForEachPart(const Json& part, const char* members, const std::string& place,
                         absl::FunctionRef<absl::Status(const Json&)> read) {
  if (TypeOf(part) != "Sequence") return At(place, read(part));
  const Json& list = Member(part, members);
  if (!list.is_array()) {
    return At(place, Fault(absl::StrCat(members, " must be an array, found ", ShowJson(list))));
  }
  for (size_t i = 0; i < list.size(); ++i) {
    auto status =
        ForEachPart(list[i], members, absl::StrCat(place, ".", members, "[", i, "]"), read);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Unsupported(const Json& part, absl::string_view supported) {
  const std::string type = TypeOf(part);
  return Fault(absl::StrCat("found ", type.empty() ? ShowJson(part) : Quoted(type),
                            ", supported are ", supported));
}

absl::StatusOr<char32_t> ReadCharacter(const Json& part, const char* key) {
  const absl::StatusOr<std::string> text = ReadString(part, key);
  if (!text.ok()) return text.status();
  size_t end = 0;
  const char32_t character = text->empty() ? 0 : TakeCharacter(*text, end);
  if (text->empty() || end != text->size()) {
    return Fault(absl::StrCat(key, " must be one character, found ", Quoted(*text)));
  }
  return character;
}

absl::StatusOr<Regex> ReadPattern(const Json& part) {
  const Json& pattern = Member(part, "pattern");
  for (const char* kind : {"Regex", "String"}) {
    const Json& value = Member(pattern, kind);
    if (!value.is_string()) continue;
    const auto& text = value.get_ref<const std::string&>();
    auto regex = *kind == 'R' ? Regex::FromOniguruma(text) : Regex::FromText(text);
    if (regex.ok()) return regex;
    return At(absl::StrCat("pattern ", Quoted(text)), regex.status());
  }
  return Fault(absl::StrCat("pattern must be {\"Regex\": ...} or {\"String\": ...}, found ",
                            ShowJson(pattern)));
}

absl::StatusOr<PreTokenizer::Metaspace::Prepend> ReadPrependScheme(const Json& part) {
  using Prepend = PreTokenizer::Metaspace::Prepend;
  const Json& scheme = Member(part, "prepend_scheme");
  bool add_prefix_space = true;
  if (auto status = ReadFlag(part, "add_prefix_space", add_prefix_space); !status.ok()) {
    return status;
  }
  if (scheme == "never" || (scheme.is_null() && !add_prefix_space)) return Prepend::kNever;
  if (scheme == "first") return Prepend::kFirst;
  if (scheme == "always" || scheme.is_null()) return Prepend::kAlways;
  return Fault(absl::StrCat("prepend_scheme is ", ShowJson(scheme),
                            ", allowed are \"always\", \"first\" and \"never\""));
}

}  // namespace ddl
