#ifndef DDL_MODEL_TOKENIZER_TOKENIZER_JSON_H_
#define DDL_MODEL_TOKENIZER_TOKENIZER_JSON_H_

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/tokenizer_spec.h"

namespace ddl {

// Reads what a `tokenizer.json` holds. INVALID_ARGUMENT, naming the member, for what is malformed,
// or what the file asks for and is not supported: a model other than BPE, or one of the parts that
// only other models use. `truncation` and `padding` are not read: they are for batches of training
// data, and Hugging Face's transformers switch both off too.
absl::Status ReadTokenizerJson(const nlohmann::json& root, TokenizerSpec& spec);

// {"token": id, ...}, as in `vocab.json` and in model.vocab.
absl::Status ReadVocabulary(const nlohmann::json& object, TokenizerSpec& spec);
// {"content": "<s>", "lstrip": false, ...}, without its id.
absl::StatusOr<AddedToken> ReadAddedToken(const nlohmann::json& object);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKENIZER_JSON_H_
