#ifndef DDL_MODEL_TOKENIZER_TOKENIZER_FILES_H_
#define DDL_MODEL_TOKENIZER_TOKENIZER_FILES_H_

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/token.h"
#include "model/tokenizer/byte_pair_encoder.h"

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
  // Looked for after the normalizer, hence only where no token with `normalized` false was found.
  bool normalized = false;
};

// All that a checkpoint's tokenizer files say, checked: every id is below kMaxTokenId and stands
// for one thing, merges and added tokens refer to what is there.
struct TokenizerSpec {
  BytePairVocabulary vocabulary;
  // Vocabulary entries that are not made of bytes by merging, as they are written: "<unk>".
  std::vector<BytePairVocabulary::Entry> unreachable;
  std::vector<AddedToken> added_tokens;
  bool add_prefix_space = false;  // " " before every text that does not begin with one
  bool split_words = true;        // by GPT-2's pattern
  // What the post-processor puts around the tokens of a text.
  std::vector<TokenId> prefix;
  std::vector<TokenId> suffix;
  std::optional<TokenId> eos_token_id;
};

inline constexpr TokenId kMaxTokenId = (1 << 24) - 1;

// Reads what Tokenizer::Load describes, with its errors.
absl::StatusOr<TokenizerSpec> ReadTokenizerFiles(const std::filesystem::path& folder);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKENIZER_FILES_H_
