#include "model/tokenizer/post_processor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ddl {
namespace {

TEST(PostProcessorTest, TrimsOffsets) {
  struct Row {
    const char* name;
    bool add_prefix_space;
    std::string text;
    std::string written;  // of the second token; the first one is "x"
    TextSpan span;
    TextSpan trimmed;
  };
  const Row rows[] = {
      {"nothing to trim", false, "xab", "ab", {1, 3}, {1, 3}},
      {"one space", false, "x ab", "Ġab", {1, 4}, {2, 4}},
      {"spaces on both sides", false, "x  ab ", "ĠĠabĠ", {1, 6}, {3, 5}},
      {"only spaces", false, "x  ", "ĠĠ", {1, 3}, {3, 3}},
      {"white space of more bytes", false, "x\u3000ab", "\u3000ab", {1, 6}, {4, 6}},
      {"not the first: the prefix space is not its", true, "x ab", "Ġab", {1, 4}, {2, 4}},
      {"as the first: the space was put in", true, "ab", "Ġab", {0, 2}, {0, 2}},
      {"two spaces were not put in", true, " ab", "ĠĠab", {0, 3}, {2, 3}},
  };
  for (const Row& row : rows) {
    const PostProcessor processor({PostProcessor::TrimOffsets{row.add_prefix_space}});
    std::vector<EncodedToken> tokens = {{1, {0, 1}, {}}, {2, row.span, TokenEnds::Of(row.written)}};
    processor.Run(row.text, false, tokens);
    EXPECT_EQ(tokens[1].span, row.trimmed) << row.name;
  }
}

TEST(PostProcessorTest, SurroundsOnRequestAndInOrder) {
  const PostProcessor processor(
      {PostProcessor::Surround{{1}, {2}}, PostProcessor::Surround{{3, 4}, {}}});
  for (const bool add_special_tokens : {false, true}) {
    std::vector<EncodedToken> tokens = {{9, {0, 1}, {}}};
    processor.Run("a", add_special_tokens, tokens);
    std::vector<TokenId> ids;
    for (const EncodedToken& token : tokens) ids.push_back(token.id);
    EXPECT_EQ(ids, add_special_tokens ? std::vector<TokenId>({3, 4, 1, 9, 2})
                                      : std::vector<TokenId>({9}));
  }
}

}  // namespace
}  // namespace ddl
