#include "model/tokenizer/json_fields.h"

#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/strict_json.h"

namespace ddl {

using Json = nlohmann::json;

const Json& Member(const Json& object, const char* key) {
  static const Json null;
  const auto member = object.find(key);
  return member == object.end() ? null : *member;
}

std::string TypeOf(const Json& object) {
  const Json& type = Member(object, "type");
  return type.is_string() ? type.get<std::string>() : "";
}

absl::Status ReadFlag(const Json& object, const char* key, bool& value) {
  const Json& member = Member(object, key);
  if (member.is_null()) return absl::OkStatus();
  if (!member.is_boolean()) {
    return Fault(absl::StrCat(key, " must be true or false, found ", ShowJson(member)));
  }
  value = member.get<bool>();
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadString(const Json& object, const char* key) {
  const Json& member = Member(object, key);
  if (!member.is_string()) {
    return Fault(absl::StrCat(key, " must be a string, found ", ShowJson(member)));
  }
  return member.get<std::string>();
}

absl::StatusOr<TokenId> ReadId(const Json& value) {
  if (!value.is_number_integer() || value < 0 || value > kMaxTokenId) {
    return Fault(absl::StrCat("a token id must be a whole number from 0 to ", kMaxTokenId,
                              ", found ", ShowJson(value)));
  }
  return value.get<TokenId>();
}

absl::Status Fault(absl::string_view message) { return absl::InvalidArgumentError(message); }

std::string Quoted(std::string_view text) { return absl::StrCat("\"", ShowName(text), "\""); }

absl::Status At(absl::string_view place, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(place, ": ", status.message()));
}

absl::Status InFile(const std::filesystem::path& file, const absl::Status& status) {
  return At(file.string(), status);
}

bool Exists(const std::filesystem::path& file) {
  std::error_code error;
  return std::filesystem::exists(file, error);
}

absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& file) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) return Fault("not a regular file");
  std::ifstream stream(file, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream) return Fault("cannot be read");
  return text;
}

absl::StatusOr<Json> ReadJsonFile(const std::filesystem::path& file) {
  const absl::StatusOr<std::string> text = ReadTextFile(file);
  if (!text.ok()) return InFile(file, text.status());
  return ParsePythonJsonObject(*text, file.string());
}

}  // namespace ddl
