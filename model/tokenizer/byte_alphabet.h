#ifndef DDL_MODEL_TOKENIZER_BYTE_ALPHABET_H_
#define DDL_MODEL_TOKENIZER_BYTE_ALPHABET_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ddl {

// How byte-level vocabularies write bytes, since GPT-2: each as one printable character, Latin-1's
// as themselves and the others as U+0100 and on, in order. All are below this one.
inline constexpr char32_t kByteAlphabetEnd = 0x144;

// The character of a byte.
char32_t ByteCharacter(uint8_t byte);

// The bytes that `written` stands for, unless it has a character that is not of the alphabet.
std::optional<std::string> WrittenBytes(std::string_view written);

// How `bytes` is written.
std::string WriteBytes(std::string_view bytes);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_BYTE_ALPHABET_H_
