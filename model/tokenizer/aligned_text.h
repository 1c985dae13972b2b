#ifndef DDL_MODEL_TOKENIZER_ALIGNED_TEXT_H_
#define DDL_MODEL_TOKENIZER_ALIGNED_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

namespace ddl {

// The bytes [start, end) of a text.
struct TextSpan {
  uint32_t start = 0;
  uint32_t end = 0;

  bool operator==(const TextSpan& other) const = default;
};

// A character of changed text, and what it does to the characters that were there: 0 takes the
// place of the next of them, -n also drops n more after that one, and 1 is put in and takes none.
struct ChangedCharacter {
  char32_t character = 0;
  int change = 0;
};

// Text made from an original text, step by step, that knows which bytes of the original each of
// its bytes comes from. Made from a character, a byte comes from that character's bytes; put in, it
// comes from the character before it, or from the place where the text begins.
//
// Without `tracked` it only holds text, and Origin must not be asked.
class AlignedText {
 public:
  explicit AlignedText(bool tracked) : tracked_(tracked) {}
  // All of `text`, which begins at byte `offset` of the original.
  AlignedText(std::string_view text, size_t offset, bool tracked);

  const std::string& text() const { return text_; }
  size_t size() const { return text_.size(); }
  bool empty() const { return text_.empty(); }
  bool tracked() const { return tracked_; }

  // Where the bytes [begin, end), at least one, come from.
  TextSpan Origin(size_t begin, size_t end) const {
    return {origins_[begin].start, origins_[end - 1].end};
  }
  // Where the character that begins at, or ends before, `position` comes from.
  TextSpan OriginOfCharacterAt(size_t position) const;
  TextSpan OriginOfCharacterBefore(size_t position) const;

  void Append(std::string_view bytes, TextSpan origin);
  // The bytes [begin, end) of `source`.
  void AppendFrom(const AlignedText& source, size_t begin, size_t end);
  // The bytes [begin, end) of `source`, the first `dropped` characters of them left out and the
  // others changed.
  void AppendChanged(const AlignedText& source, size_t begin, size_t end,
                     absl::Span<const ChangedCharacter> changed, size_t dropped = 0);

 private:
  bool tracked_;
  std::string text_;
  std::vector<TextSpan> origins_;  // by byte; empty unless tracked
};

// Appends the bytes [begin, end) of `source`, which are not empty, with `prefix` before them. Put
// in, it comes from the first character, as in Hugging Face's tokenizers.
void AppendPrefixed(const AlignedText& source, size_t begin, size_t end, std::string_view prefix,
                    AlignedText& result);
// Appends the bytes [begin, end) of `source`, each as its character of the byte alphabet.
void AppendByteLevel(const AlignedText& source, size_t begin, size_t end, AlignedText& result);

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_ALIGNED_TEXT_H_
