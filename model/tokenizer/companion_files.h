#ifndef DDL_MODEL_TOKENIZER_COMPANION_FILES_H_
#define DDL_MODEL_TOKENIZER_COMPANION_FILES_H_

#include <filesystem>

#include "absl/status/status.h"
#include "model/tokenizer/tokenizer_spec.h"

namespace ddl {

// Reads the files beside a vocabulary into `spec`, as Hugging Face's transformers do:
//
// - `tokenizer_config.json`: `added_tokens_decoder` adds tokens and changes their flags. Only
//   without it are `special_tokens_map.json`, which then names the special tokens, and
//   `added_tokens.json` read.
// - The named special tokens (bos_token, eos_token, unk_token, sep_token, pad_token, cls_token,
//   mask_token, additional_special_tokens, extra_special_tokens) are special wherever the
//   vocabulary has them.
// - `add_bos_token` and `add_eos_token` decide what goes around a text where no tokenizer.json
// does.
//   Beside one they are ignored, as transformers 5 have it; 4 obeyed them for the classes of Llama
//   and Gemma.
//
// INVALID_ARGUMENT, naming the file and the member, for what is malformed or contradicts the
// vocabulary.
absl::Status ReadCompanionFiles(const std::filesystem::path& folder, bool has_tokenizer_json,
                                TokenizerSpec& spec);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_COMPANION_FILES_H_
