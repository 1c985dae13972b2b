#include "model/tokenizer/token_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace ddl {
namespace {

using Pieces = std::vector<std::string>;

// What comes out after each token, and at last at the end.
Pieces Streamed(const TokenDecoder& decoder, const std::vector<std::string>& tokens) {
  TokenDecoder::Stream stream(decoder);
  Pieces pieces;
  for (const std::string& token : tokens) {
    const auto prepared = decoder.Prepare(token);
    EXPECT_TRUE(prepared.ok()) << prepared.status();
    pieces.push_back(stream.Append(*prepared));
  }
  pieces.push_back(stream.Finish());
  return pieces;
}

TokenDecoder::Replace SpaceFor(const std::string& text) {
  auto pattern = Regex::FromText(text);
  EXPECT_TRUE(pattern.ok()) << pattern.status();
  return {*std::move(pattern), " "};
}

TEST(TokenDecoderTest, StreamsWhatNothingCanChange) {
  std::vector<TokenDecoder::TokenStep> spaces;
  spaces.emplace_back(SpaceFor("▁"));
  const TokenDecoder llama2(std::move(spaces), TokenDecoder::ByteFallback(), {{' ', 1, 0}});
  EXPECT_EQ(Streamed(llama2, {"▁Hi", "▁a"}), (Pieces{"Hi", " a", ""}));
  EXPECT_EQ(Streamed(llama2, {"▁", "▁▁x"}), (Pieces{"", "  x", ""}));
  // Bytes wait for the end of their run: one that is not UTF-8 spoils all of it.
  EXPECT_EQ(Streamed(llama2, {"a", "<0xE2>", "<0x82>", "<0xAC>", "b"}),
            (Pieces{"a", "", "", "", "€b", ""}));
  EXPECT_EQ(Streamed(llama2, {"<0x41>", "<0xE2>"}), (Pieces{"", "", "\uFFFD\uFFFD"}));

  const TokenDecoder bytes({}, TokenDecoder::ByteLevel(), {});
  EXPECT_EQ(Streamed(bytes, {"aĠ", "Ã", "©", "â", "Ĥ"}), (Pieces{"a ", "", "é", "", "", "\uFFFD"}));
  EXPECT_EQ(Streamed(bytes, {"日本"}), (Pieces{"日本", ""}));  // not of the byte alphabet

  const TokenDecoder words({}, TokenDecoder::WordSuffix{"</w>"}, {});
  EXPECT_EQ(Streamed(words, {"he", "llo</w>", "you</w>"}), (Pieces{"", "he", "llo ", "you"}));
  EXPECT_EQ(Streamed(words, {}), Pieces{""});

  const TokenDecoder metaspace({}, TokenDecoder::Metaspace{"▁", false}, {});
  EXPECT_EQ(Streamed(metaspace, {"▁a▁b", "▁c"}), (Pieces{"ab", " c", ""}));

  const TokenDecoder separated({}, TokenDecoder::SpaceSeparated(), {});
  EXPECT_EQ(Streamed(separated, {"a", "b"}), (Pieces{"a", " b", ""}));

  const TokenDecoder stripped({}, TokenDecoder::Concatenated(), {{'_', 2, 2}});
  EXPECT_EQ(Streamed(stripped, {"_", "_", "_a_", "_", "_", "b_"}),
            (Pieces{"", "", "_a", "", "_", "__b", ""}));
}

}  // namespace
}  // namespace ddl
