#ifndef DDL_MODEL_TOKENIZER_CHARACTERS_H_
#define DDL_MODEL_TOKENIZER_CHARACTERS_H_

namespace ddl {

// What Hugging Face's tokenizers mean by classes of characters, each in the Unicode version of the
// Rust library that it takes the class from.

// The property White_Space.
bool IsWhiteSpace(char32_t character);
// A decimal digit or another number: general category N as of Unicode 17.
bool IsNumeric(char32_t character);
// ASCII punctuation and symbols, and general category P as of Unicode 8.
bool IsPunctuation(char32_t character);
// General category M as of Unicode 9.
bool IsCombiningMark(char32_t character);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_CHARACTERS_H_
