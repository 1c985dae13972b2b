#ifndef DDL_BASE_STRICT_JSON_H_
#define DDL_BASE_STRICT_JSON_H_

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ddl {

// Parses a whole JSON text that must be an object. Besides what is not JSON it refuses what
// readers disagree about, the same key twice in one object, and nesting deeper than 32. Throws
// nothing. `source` names the text in messages.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view source);

// The same of what Python's json module writes: NaN, Infinity and -Infinity stand for numbers
// there. They become the strings "NaN", "Infinity" and "-Infinity", so that whoever reads such a
// key refuses it, and nobody minds the others.
absl::StatusOr<nlohmann::json> ParsePythonJsonObject(std::string_view text,
                                                     std::string_view source);

// A value, and a name from a file, as messages show them: on one line, without control
// characters, shortened to about 80 characters.
std::string ShowJson(const nlohmann::json& value);
std::string ShowName(std::string_view name);

}  // namespace ddl

#endif  // DDL_BASE_STRICT_JSON_H_
