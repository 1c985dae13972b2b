#include "model/tokenizer/aligned_text.h"

#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/utf8.h"

namespace ddl {

AlignedText::AlignedText(std::string_view text, size_t offset, bool tracked)
    : tracked_(tracked), text_(text) {
  if (!tracked) return;
  origins_.resize(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    origins_[i] = {static_cast<uint32_t>(offset + i), static_cast<uint32_t>(offset + i + 1)};
  }
}

TextSpan AlignedText::OriginOfCharacterAt(size_t position) const {
  return Origin(position, NextCharacter(text_, position));
}

TextSpan AlignedText::OriginOfCharacterBefore(size_t position) const {
  return Origin(PreviousCharacter(text_, position), position);
}

void AlignedText::Append(std::string_view bytes, TextSpan origin) {
  text_.append(bytes);
  if (tracked_) origins_.insert(origins_.end(), bytes.size(), origin);
}

void AlignedText::AppendFrom(const AlignedText& source, size_t begin, size_t end) {
  text_.append(source.text_, begin, end - begin);
  if (!tracked_) return;
  origins_.insert(origins_.end(), source.origins_.begin() + static_cast<ptrdiff_t>(begin),
                  source.origins_.begin() + static_cast<ptrdiff_t>(end));
}

void AlignedText::AppendChanged(const AlignedText& source, size_t begin, size_t end,
                                absl::Span<const ChangedCharacter> changed, size_t dropped) {
  size_t position = begin;
  const auto skip = [&](size_t characters) {
    for (; characters > 0 && position < end; --characters) {
      position = NextCharacter(source.text_, position);
    }
  };
  skip(dropped);
  for (const ChangedCharacter& next : changed) {
    TextSpan origin;
    if (tracked_ && next.change > 0) {
      const uint32_t first = source.origins_.empty() ? 0 : source.origins_[begin].start;
      origin = position > begin ? source.OriginOfCharacterBefore(position) : TextSpan{first, first};
    } else if (tracked_) {
      origin = source.OriginOfCharacterAt(position);
    }
    if (next.change <= 0) skip(1 + static_cast<size_t>(-next.change));
    const size_t size = text_.size();
    AppendUtf8(next.character, text_);
    if (tracked_) origins_.insert(origins_.end(), text_.size() - size, origin);
  }
}

void AppendPrefixed(const AlignedText& source, size_t begin, size_t end, std::string_view prefix,
                    AlignedText& result) {
  const TextSpan origin = source.tracked() ? source.OriginOfCharacterAt(begin) : TextSpan();
  result.Append(prefix, origin);
  result.AppendFrom(source, begin, end);
}

void AppendByteLevel(const AlignedText& source, size_t begin, size_t end, AlignedText& result) {
  std::string written;
  for (size_t i = begin; i < end; ++i) {
    written.clear();
    AppendUtf8(ByteCharacter(static_cast<uint8_t>(source.text()[i])), written);
    result.Append(written, source.tracked() ? source.Origin(i, i + 1) : TextSpan());
  }
}

}  // namespace ddl
