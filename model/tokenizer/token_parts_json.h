#ifndef DDL_MODEL_TOKENIZER_TOKEN_PARTS_JSON_H_
#define DDL_MODEL_TOKENIZER_TOKEN_PARTS_JSON_H_

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "model/tokenizer/tokenizer_spec.h"

namespace ddl {

// The parts of a tokenizer.json, whose root is given, that work on tokens: the post_processor,
// which puts special tokens around them, and the decoder, which makes text of them. The spec has
// all tokens by then. INVALID_ARGUMENT, naming the member, for what is malformed or not supported.
absl::Status ReadPostProcessor(const nlohmann::json& root, TokenizerSpec& spec);
absl::Status ReadDecoder(const nlohmann::json& root, TokenizerSpec& spec);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKEN_PARTS_JSON_H_
