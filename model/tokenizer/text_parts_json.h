#ifndef DDL_MODEL_TOKENIZER_TEXT_PARTS_JSON_H_
#define DDL_MODEL_TOKENIZER_TEXT_PARTS_JSON_H_

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "model/tokenizer/tokenizer_spec.h"

namespace ddl {

// The parts of a tokenizer.json, whose root is given, that work on text: the normalizer, which
// changes it, and the pre_tokenizer, which splits it into words. INVALID_ARGUMENT, naming the
// member, for what is malformed or not supported.
absl::Status ReadNormalizer(const nlohmann::json& root, TokenizerSpec& spec);
absl::Status ReadPreTokenizer(const nlohmann::json& root, TokenizerSpec& spec);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TEXT_PARTS_JSON_H_
