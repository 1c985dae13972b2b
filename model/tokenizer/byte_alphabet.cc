#include "model/tokenizer/byte_alphabet.h"

#include <array>

#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

struct Alphabet {
  std::array<char32_t, 256> characters{};
  std::array<int16_t, kByteAlphabetEnd> bytes{};  // -1: not of the alphabet
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.bytes) byte = -1;
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    alphabet.characters[byte] = printable ? byte : next++;
    alphabet.bytes[alphabet.characters[byte]] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

char32_t ByteCharacter(uint8_t byte) { return kAlphabet.characters[byte]; }

std::optional<std::string> WrittenBytes(std::string_view written) {
  std::string bytes;
  for (size_t position = 0; position < written.size();) {
    const char32_t character = TakeCharacter(written, position);
    if (character >= kByteAlphabetEnd || kAlphabet.bytes[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.bytes[character]));
  }
  return bytes;
}

std::string WriteBytes(std::string_view bytes) {
  std::string written;
  for (const char byte : bytes) AppendUtf8(ByteCharacter(static_cast<uint8_t>(byte)), written);
  return written;
}

}  // namespace ddl
