#ifndef DDL_MODEL_TOKENIZER_TOKENIZER_JSON_H_
#define DDL_MODEL_TOKENIZER_TOKENIZER_JSON_H_

#include <nlohmann/json.hpp>
#include <string>

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
// The next merge, of two tokens of the vocabulary. `continuing_prefix`, if the vocabulary has one,
// is not in the merged token.
absl::Status AddMerge(const std::string& left, const std::string& right, TokenizerSpec& spec);
// The same from a line "left right".
absl::Status AddMergeLine(const std::string& line, TokenizerSpec& spec);

// Adds a token, or changes the flags of one that is there. INVALID_ARGUMENT when another token has
// its id, or its content has another id.
absl::Status AddToken(AddedToken token, TokenizerSpec& spec);
// {"content": "<s>", "lstrip": false, ...}, without its id.
absl::StatusOr<AddedToken> ReadAddedToken(const nlohmann::json& object);

// What GPT-2's byte-level tokenizer has besides its vocabulary.
absl::Status UseGpt2Parts(bool add_prefix_space, TokenizerSpec& spec);
// The same with words by another pattern, as Oniguruma writes it.
absl::Status UseByteLevelParts(const std::string& pattern, TokenizerSpec& spec);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKENIZER_JSON_H_
