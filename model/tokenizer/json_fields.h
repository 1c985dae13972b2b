#ifndef DDL_MODEL_TOKENIZER_JSON_FIELDS_H_
#define DDL_MODEL_TOKENIZER_JSON_FIELDS_H_

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/token.h"

namespace ddl {

inline constexpr TokenId kMaxTokenId = (1 << 24) - 1;

// Fields of the JSON files that tokenizers come in. Errors are INVALID_ARGUMENT and say what was
// found and what is allowed, but not in which file: InFile adds that.

// The member of an object, null where there is none.
const nlohmann::json& Member(const nlohmann::json& object, const char* key);
// The member "type", empty when it is no string.
std::string TypeOf(const nlohmann::json& object);

// Leaves `value` alone where the member is missing or null.
absl::Status ReadFlag(const nlohmann::json& object, const char* key, bool& value);
absl::StatusOr<std::string> ReadString(const nlohmann::json& object, const char* key);
absl::StatusOr<TokenId> ReadId(const nlohmann::json& value);

absl::Status Fault(absl::string_view message);
std::string Quoted(std::string_view text);
// With `place` in front of the message.
absl::Status At(absl::string_view place, const absl::Status& status);
absl::Status InFile(const std::filesystem::path& file, const absl::Status& status);

bool Exists(const std::filesystem::path& file);
absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& file);
// A file whose JSON, as Python's json module writes it, is an object. Unlike the others' here, its
// errors name the file.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::filesystem::path& file);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_JSON_FIELDS_H_
