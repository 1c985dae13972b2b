#ifndef DDL_MODEL_TOKENIZER_EOS_TOKENS_H_
#define DDL_MODEL_TOKENIZER_EOS_TOKENS_H_

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/token.h"
#include "model/tokenizer/tokenizer.h"

namespace ddl {

// The tokens that end a completion.
struct EosTokens {
  std::vector<TokenId> ids;         // each of them does; empty: nothing but length and stops
  std::string source = "none";      // the file that names them, as Tokenizer::eos_source has it
  std::vector<std::string> unused;  // what else names some, and ids that the model has no row for
};

// The first that names any: `eos_token_id` of a checkpoint's `generation_config.json`, which
// Hugging Face's transformers stop at, that of `config.json`, and the tokenizer's end-of-text
// token. Each of the former may be one id or several. Ids outside [0, vocab_size), which the model
// never draws, do not count. `tokenizer` may be null. INVALID_ARGUMENT, naming the file, for what
// is malformed.
absl::StatusOr<EosTokens> ReadEosTokens(const std::filesystem::path& folder,
                                        const Tokenizer* tokenizer, TokenId vocab_size);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_EOS_TOKENS_H_
