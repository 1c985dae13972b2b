#include "model/checkpoint/convert_command.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace ddl {
namespace {

constexpr char kMark[] = "ddl.convertible";

}  // namespace

std::string ShellWord(std::string_view text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%_+=:,./-";
  if (!text.empty() && text.find_first_not_of(kPlain) == text.npos) return std::string(text);
  return absl::StrCat("'", absl::StrReplaceAll(std::string(text), {{"'", R"('\'')"}}), "'");
}

std::string ConvertCommand(const std::filesystem::path& source) {
  // "models/mine/" has an empty file name; a path that begins with a dash would be an option.
  std::filesystem::path path = source.has_filename() ? source : source.parent_path();
  if (path.native().starts_with("-")) path = std::filesystem::path(".") / path;
  return absl::StrCat("tools/convert_checkpoint.py ", ShellWord(path.native()), " ",
                      ShellWord(path.native() + "-converted"));
}

absl::Status Convertible(absl::Status refusal) {
  refusal.SetPayload(kMark, absl::Cord());
  return refusal;
}

bool IsConvertible(const absl::Status& refusal) { return refusal.GetPayload(kMark).has_value(); }

absl::Status WithConvertCommand(const absl::Status& refusal, const std::filesystem::path& source) {
  if (!IsConvertible(refusal)) return refusal;
  return absl::Status(refusal.code(), absl::StrCat(refusal.message(),
                                                   "\nThis writes it as the server reads it:\n  ",
                                                   ConvertCommand(source)));
}

}  // namespace ddl
