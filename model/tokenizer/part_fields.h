#ifndef DDL_MODEL_TOKENIZER_PART_FIELDS_H_
#define DDL_MODEL_TOKENIZER_PART_FIELDS_H_

#include <nlohmann/json.hpp>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/regex.h"

namespace ddl {

// What the parts of a tokenizer.json (normalizer, pre_tokenizer, post_processor, decoder) have in
// common. Errors are as in json_fields.h.

// Calls `read` with each part of a pipeline that is not a Sequence, in order. `members` is what a
// Sequence calls its list; `place` is where `part` is, for errors.
absl::Status ForEachPart(const nlohmann::json& part, const char* members, const std::string& place,
                         absl::FunctionRef<absl::Status(const nlohmann::json&)> read);
// The error of a part of another type than the `supported` ones.
absl::Status Unsupported(const nlohmann::json& part, absl::string_view supported);

absl::StatusOr<char32_t> ReadCharacter(const nlohmann::json& part, const char* key);
// The member "pattern": {"Regex": "..."} or {"String": "..."}
absl::StatusOr<Regex> ReadPattern(const nlohmann::json& part);
// What the `prepend_scheme` of a Metaspace says; old files say `add_prefix_space`.
absl::StatusOr<PreTokenizer::Metaspace::Prepend> ReadPrependScheme(const nlohmann::json& part);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_PART_FIELDS_H_
