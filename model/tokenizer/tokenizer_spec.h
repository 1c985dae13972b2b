#ifndef DDL_MODEL_TOKENIZER_TOKENIZER_SPEC_H_
#define DDL_MODEL_TOKENIZER_TOKENIZER_SPEC_H_

#include <optional>
#include <string>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
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

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKENIZER_SPEC_H_
