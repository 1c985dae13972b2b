#ifndef DDL_MODEL_TOKENIZER_TIKTOKEN_H_
#define DDL_MODEL_TOKENIZER_TIKTOKEN_H_

#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/tokenizer_spec.h"

namespace ddl {

// tiktoken's files: a line for each token, its bytes in base64, a space and its rank, which is its
// id. Words and special tokens are not in them but in the library; they are those of the encoding
// that the file is named after.

// Whether a file's text looks like it, whatever it is called: Llama 3 calls its `tokenizer.model`,
// as others call their SentencePiece models.
bool LooksLikeTiktoken(std::string_view text);

// Reads `text` as the encoding `name`: gpt2, r50k_base, p50k_base, cl100k_base, o200k_base, qwen,
// or llama3 (a file called tokenizer.model). INVALID_ARGUMENT, saying on which line, for what is
// malformed, and for other names, which words and special tokens are unknown for.
absl::Status ReadTiktoken(std::string_view name, std::string_view text, TokenizerSpec& spec);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TIKTOKEN_H_
