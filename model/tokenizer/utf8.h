#ifndef DDL_MODEL_TOKENIZER_UTF8_H_
#define DDL_MODEL_TOKENIZER_UTF8_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace ddl {

// U+FFFD, which stands for bytes that are not UTF-8.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// What a string of bytes begins with.
struct Utf8Sequence {
  enum class Kind {
    kCharacter,  // a well-formed character
    kIllFormed,  // bytes that no continuation can make a character
    kTruncated,  // the beginning of a character, up to the end of the bytes
  };
  Kind kind = Kind::kCharacter;
  // Bytes, 1 to 4. Of what is not a character: the maximal subpart, which is what Unicode (and
  // Python's errors="replace") replaces by one U+FFFD.
  size_t length = 0;
};

// `bytes` must not be empty.
Utf8Sequence FirstUtf8Sequence(std::string_view bytes);

// Offset of the first byte that does not belong to a well-formed character.
std::optional<size_t> FindInvalidUtf8(std::string_view text);

// Appends the characters of `bytes` to `text`, U+FFFD for ill-formed ones, and returns the number
// of bytes used: all but a truncated character at the end, which has at most 3.
size_t AppendWholeCharacters(std::string_view bytes, std::string& text);

// The rest is for well-formed text.

// The character that begins at `position`; moves `position` to the next one.
char32_t TakeCharacter(std::string_view text, size_t& position);
// Where the character after the one at `position`, and the one that ends before it, begin.
size_t NextCharacter(std::string_view text, size_t position);
size_t PreviousCharacter(std::string_view text, size_t position);
void AppendUtf8(char32_t character, std::string& text);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_UTF8_H_
