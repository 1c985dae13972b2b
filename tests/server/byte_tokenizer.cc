#include "tests/server/byte_tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "base/check.h"

namespace ddl {
namespace {

// The letter that byte-level BPE writes for a byte, as JSON: itself where it is visible, else one
// of the letters from U+0100 on.
std::string JsonLetter(int byte) {
  const auto visible = [](int b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
  };
  int letter = byte;
  if (!visible(byte)) {
    letter = 0x100;
    for (int b = 0; b < byte; ++b) letter += visible(b) ? 0 : 1;
  }
  char json[16];
  std::snprintf(json, sizeof json, "\\u%04x", letter);
  return json;
}

}  // namespace

std::shared_ptr<const Tokenizer> MakeByteTokenizer() {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / ("byte_tokenizer." + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream vocabulary(folder / "vocab.json");
  vocabulary << "{";
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary << "\"" << JsonLetter(byte) << "\": " << byte << ", ";
  }
  vocabulary << "\"<|endoftext|>\": " << kByteTokenizerEos << "}\n";
  vocabulary.close();
  std::ofstream(folder / "merges.txt") << "#version: 0.2\n";
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(folder);
  std::filesystem::remove_all(folder);
  if (!tokenizer.ok()) std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
  DDL_CHECK(tokenizer.ok(), "the byte tokenizer does not load");
  return *std::move(tokenizer);
}

}  // namespace ddl
