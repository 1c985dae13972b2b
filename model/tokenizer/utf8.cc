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

char32_t TakeCharacter(std::string_view text, size_t& position) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[position + i]); };
  const char32_t lead = byte(0);
  char32_t character = lead;
  size_t length = 1;
  if (lead >= 0xF0) {
    character =
        (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    length = 4;
  } else if (lead >= 0xE0) {
    character = (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    length = 3;
  } else if (lead >= 0xC0) {
    character = (lead & 0x1F) << 6 | (byte(1) & 0x3F);
    length = 2;
  }
  position += length;
  return character;
}

size_t NextCharacter(std::string_view text, size_t position) {
  const auto lead = static_cast<uint8_t>(text[position]);
  return position + (lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4);
}

size_t PreviousCharacter(std::string_view text, size_t position) {
  do {
    --position;
  } while (position > 0 && (static_cast<uint8_t>(text[position]) & 0xC0) == 0x80);
  return position;
}

void AppendUtf8(char32_t character, std::string& text) {
  const auto add = [&text](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (character < 0x80) {
    add(character);
  } else if (character < 0x800) {
    add(0xC0 | character >> 6);
    add(0x80 | (character & 0x3F));
  } else if (character < 0x10000) {
    add(0xE0 | character >> 12);
    add(0x80 | (character >> 6 & 0x3F));
    add(0x80 | (character & 0x3F));
  } else {
    add(0xF0 | character >> 18);
    add(0x80 | (character >> 12 & 0x3F));
    add(0x80 | (character >> 6 & 0x3F));
    add(0x80 | (character & 0x3F));
  }
}

}  // namespace ddl
