#ifndef DDL_MODEL_TOKENIZER_TOKENIZER_FILES_H_
#define DDL_MODEL_TOKENIZER_TOKENIZER_FILES_H_

#include <filesystem>

#include "absl/status/statusor.h"
#include "model/tokenizer/tokenizer_spec.h"

namespace ddl {

// Reads what Tokenizer::Load describes, with its errors.
absl::StatusOr<TokenizerSpec> ReadTokenizerFiles(const std::filesystem::path& folder);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKENIZER_FILES_H_
