#include "model/tokenizer/utf8.h"

#include <cstdint>
#include <cstring>

namespace ddl {
namespace {

struct LeadByte {
  size_t length = 0;  // of the character; 0: no character begins so
  // Range of the second byte. It alone excludes overlong forms, surrogates and what is past
  // U+10FFFF.
  uint8_t second_min = 0x80;
  uint8_t second_max = 0xBF;
};

LeadByte ClassifyLeadByte(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  if (byte < 0xF4) return {4};
  return {0};
}

// Length of the run of ASCII that `text` has from `position` on, in whole steps of 8 bytes.
size_t AsciiRun(std::string_view text, size_t position) {
  constexpr uint64_t kHighBits = 0x8080808080808080;
  size_t end = position;
  for (uint64_t bytes; end + sizeof(bytes) <= text.size(); end += sizeof(bytes)) {
    std::memcpy(&bytes, text.data() + end, sizeof(bytes));
    if ((bytes & kHighBits) != 0) break;
  }
  return end - position;
}

}  // namespace

Utf8Sequence FirstUtf8Sequence(std::string_view bytes) {
  const LeadByte lead = ClassifyLeadByte(static_cast<uint8_t>(bytes[0]));
  if (lead.length == 0) return {Utf8Sequence::Kind::kIllFormed, 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {Utf8Sequence::Kind::kTruncated, i};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t min = i == 1 ? lead.second_min : 0x80;
    const uint8_t max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return {Utf8Sequence::Kind::kIllFormed, i};
  }
  return {Utf8Sequence::Kind::kCharacter, lead.length};
}

std::optional<size_t> FindInvalidUtf8(std::string_view text) {
  size_t position = 0;
  while (true) {
    position += AsciiRun(text, position);
    if (position == text.size()) return std::nullopt;
    const Utf8Sequence sequence = FirstUtf8Sequence(text.substr(position));
    if (sequence.kind != Utf8Sequence::Kind::kCharacter) return position;
    position += sequence.length;
  }
}

size_t AppendWholeCharacters(std::string_view bytes, std::string& text) {
  size_t position = 0;
  while (position < bytes.size()) {
    const Utf8Sequence sequence = FirstUtf8Sequence(bytes.substr(position));
    if (sequence.kind == Utf8Sequence::Kind::kTruncated) break;
    if (sequence.kind == Utf8Sequence::Kind::kCharacter) {
      text.append(bytes.substr(position, sequence.length));
    } else {
      text.append(kReplacementCharacter);
    }
    position += sequence.length;
  }
  return position;
}

}  // namespace ddl
