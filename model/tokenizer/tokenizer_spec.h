#ifndef DDL_MODEL_TOKENIZER_TOKENIZER_SPEC_H_
#define DDL_MODEL_TOKENIZER_TOKENIZER_SPEC_H_

#include <optional>
#include <string>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "model/token.h"
#include "model/tokenizer/byte_pair_encoder.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/post_processor.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/token_decoder.h"

namespace ddl {

// A token found in the text as it is written, before words are split.
struct AddedToken {
  TokenId id = 0;
  std::string content;   // not empty
  bool special = false;  // left out of decoded text on request
  // Takes the white space before, or after, it along.
  bool lstrip = false;
  bool rstrip = false;
  bool single_word = false;  // not inside of a word
  // Looked for, normalized itself, after the normalizer, hence only where no token with
  // `normalized` false was found.
  bool normalized = false;
};

// All that a checkpoint's tokenizer files say, checked: every id is at most kMaxTokenId and stands
// for one thing, merges and added tokens refer to what is there.
struct TokenizerSpec {
  std::string source;  // the file, or files, that the vocabulary is from: "tokenizer.json"
  BytePairVocabulary vocabulary;
  absl::btree_map<TokenId, AddedToken> added_tokens;
  // Every token, in the vocabulary or added, by its text and by its id.
  absl::flat_hash_map<std::string, TokenId> ids;
  absl::flat_hash_map<TokenId, std::string> texts;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  PostProcessor post_processor;
  TokenDecoder decoder;
  std::optional<TokenId> eos_token_id;
  std::string eos_source;  // the file that names it, where it has one
};

// How files are read into a spec. Errors are INVALID_ARGUMENT, and say what is wrong but not where.

// The next merge, of two tokens of the vocabulary. `continuing_prefix`, if the vocabulary has one,
// is not in the merged token.
absl::Status AddMerge(const std::string& left, const std::string& right, TokenizerSpec& spec);
// The same from a line "left right".
absl::Status AddMergeLine(const std::string& line, TokenizerSpec& spec);

// Adds a token, or changes the flags of one that is there, which stays special if it was, as
// Hugging Face's stay. An error when another token has its id, or its content has another id.
absl::Status AddToken(AddedToken token, TokenizerSpec& spec);

// What GPT-2's byte-level tokenizer has besides its vocabulary.
absl::Status UseGpt2Parts(bool add_prefix_space, TokenizerSpec& spec);
// The same with words by another pattern, as Oniguruma writes it.
absl::Status UseByteLevelParts(const std::string& pattern, TokenizerSpec& spec);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKENIZER_SPEC_H_
