#ifndef DDL_TESTS_SERVER_BYTE_TOKENIZER_H_
#define DDL_TESTS_SERVER_BYTE_TOKENIZER_H_

#include <memory>

#include "model/tokenizer/tokenizer.h"

namespace ddl {

// A tokenizer whose tokens are the bytes: id 0x41 is "A". Id 256 is the end-of-text token.
std::shared_ptr<const Tokenizer> MakeByteTokenizer();
inline constexpr TokenId kByteTokenizerEos = 256;
inline constexpr TokenId kByteTokenizerVocabSize = 257;

}  // namespace ddl

#endif  // DDL_TESTS_SERVER_BYTE_TOKENIZER_H_
