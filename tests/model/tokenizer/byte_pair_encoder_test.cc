#include "model/tokenizer/byte_pair_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace ddl {
namespace {

using Ids = std::vector<TokenId>;

// Tokens 0 to 127 are the characters of ASCII; each merge makes the next token.
class VocabularyBuilder {
 public:
  VocabularyBuilder() {
    for (int byte = 0; byte < 128; ++byte) Add(std::string(1, static_cast<char>(byte)));
  }

  TokenId Merge(TokenId left, TokenId right) {
    const TokenId merged = Add(vocabulary.entries[left].text + vocabulary.entries[right].text);
    const auto rank = static_cast<int32_t>(vocabulary.merges.size());
    vocabulary.merges.push_back({left, right, merged, rank});
    return merged;
  }

  TokenId Add(const std::string& text) {
    const auto id = static_cast<TokenId>(vocabulary.entries.size());
    vocabulary.entries.push_back({id, text});
    return id;
  }

  BytePairVocabulary vocabulary;
};

Ids Encode(const BytePairEncoder& encoder, const std::string& word) {
  BytePairEncoder::Workspace workspace;
  std::vector<BytePairEncoder::Piece> pieces;
  const absl::Status status = encoder.Encode(word, workspace, pieces);
  EXPECT_TRUE(status.ok()) << status;
  Ids ids;
  size_t length = 0;
  for (const BytePairEncoder::Piece& piece : pieces) {
    ids.push_back(piece.id);
    length += piece.length;
  }
  EXPECT_EQ(length, word.size());
  return ids;
}

// The definition, word for word.
Ids EncodeSlowly(const BytePairVocabulary& vocabulary, const std::string& word) {
  std::map<std::pair<TokenId, TokenId>, std::pair<size_t, TokenId>> rules;
  for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    const MergeRule& rule = vocabulary.merges[rank];
    rules[{rule.left, rule.right}] = {rank, rule.merged};
  }
  Ids ids;
  for (const char character : word) ids.push_back(character);
  while (true) {
    size_t best_rank = std::numeric_limits<size_t>::max();
    size_t best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto rule = rules.find({ids[i], ids[i + 1]});
      if (rule != rules.end() && rule->second.first < best_rank) {
        best_rank = rule->second.first;
        best = i;
      }
    }
    if (best_rank == std::numeric_limits<size_t>::max()) return ids;
    ids[best] = vocabulary.merges[best_rank].merged;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(BytePairEncoderTest, EqualsTheDefinition) {
  std::mt19937 random(7);
  const auto below = [&random](size_t n) { return static_cast<TokenId>(random() % n); };
  for (int round = 0; round < 200; ++round) {
    VocabularyBuilder builder;
    // Merges of any tokens in any order, also such as no training makes.
    Ids tokens = {'a', 'b', 'c'};
    const size_t merges = random() % 30;
    for (size_t i = 0; i < merges; ++i) {
      const TokenId left = tokens[below(tokens.size())];
      const TokenId right = tokens[below(tokens.size())];
      tokens.push_back(builder.Merge(left, right));
    }
    std::shuffle(builder.vocabulary.merges.begin(), builder.vocabulary.merges.end(), random);
    int32_t rank = 0;
    for (MergeRule& rule : builder.vocabulary.merges) rule.rank = rank++;
    const BytePairEncoder encoder(builder.vocabulary);
    for (int i = 0; i < 50; ++i) {
      std::string word;
      for (size_t n = 1 + random() % 40; n > 0; --n) word += "abc"[below(3)];
      ASSERT_EQ(Encode(encoder, word), EncodeSlowly(builder.vocabulary, word))
          << "round " << round << ", word " << word;
    }
  }
}

TEST(BytePairEncoderTest, IgnoresMergesForWordsThatAreTokens) {
  VocabularyBuilder builder;
  const TokenId ab = builder.Merge('a', 'b');
  const TokenId abc = builder.Add("abc");  // no merge makes it
  EXPECT_EQ(Encode(BytePairEncoder(builder.vocabulary), "abc"), (Ids{ab, 'c'}));
  builder.vocabulary.ignore_merges = true;
  EXPECT_EQ(Encode(BytePairEncoder(builder.vocabulary), "abc"), Ids{abc});
  EXPECT_EQ(Encode(BytePairEncoder(builder.vocabulary), "abcc"), (Ids{ab, 'c', 'c'}));
}

TEST(BytePairEncoderTest, CharactersWithoutTokens) {
  VocabularyBuilder builder;
  const auto encode = [&](const std::string& word) {
    BytePairEncoder::Workspace workspace;
    std::vector<BytePairEncoder::Piece> pieces;
    const absl::Status status = BytePairEncoder(builder.vocabulary).Encode(word, workspace, pieces);
    EXPECT_TRUE(status.ok()) << status;
    Ids ids;
    for (const BytePairEncoder::Piece& piece : pieces) ids.push_back(piece.id);
    return ids;
  };
  EXPECT_EQ(encode("éaéé"), Ids{'a'});  // left out

  builder.vocabulary.unknown = "<unk>";
  BytePairEncoder::Workspace workspace;
  std::vector<BytePairEncoder::Piece> pieces;
  const BytePairEncoder without_unknown(builder.vocabulary);
  EXPECT_TRUE(without_unknown.Encode("aa", workspace, pieces).ok());
  const absl::Status status = without_unknown.Encode("aé", workspace, pieces);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              ::testing::AllOf(::testing::HasSubstr("no token for \"é\""),
                               ::testing::HasSubstr("unk_token, \"<unk>\", is not in")));

  const TokenId unknown = builder.Add("<unk>");
  EXPECT_EQ(encode("éaéé"), (Ids{unknown, 'a', unknown, unknown}));
  builder.vocabulary.fuse_unknown = true;
  EXPECT_EQ(encode("éaéé"), (Ids{unknown, 'a', unknown}));

  builder.vocabulary.byte_fallback = true;
  const TokenId c3 = builder.Add("<0xC3>");
  EXPECT_EQ(encode("aé"), (Ids{'a', unknown}));  // no token for the second byte
  const TokenId a9 = builder.Add("<0xA9>");
  EXPECT_EQ(encode("aé"), (Ids{'a', c3, a9}));
  // As in Hugging Face's tokenizers, what is still unknown comes after the bytes.
  EXPECT_EQ(encode("€éa"), (Ids{c3, a9, unknown, 'a'}));
}

TEST(BytePairEncoderTest, WritesPrefixesAndSuffixes) {
  VocabularyBuilder builder;
  const TokenId inner_b = builder.Add("##b");
  const TokenId last_c = builder.Add("##c</w>");
  const TokenId whole_a = builder.Add("a</w>");
  builder.vocabulary.continuing_prefix = "##";
  builder.vocabulary.end_suffix = "</w>";
  EXPECT_EQ(Encode(BytePairEncoder(builder.vocabulary), "abc"), (Ids{'a', inner_b, last_c}));
  EXPECT_EQ(Encode(BytePairEncoder(builder.vocabulary), "a"), Ids{whole_a});
  builder.vocabulary.merges.push_back({'a', inner_b, builder.Add("ab"), 0});
  EXPECT_EQ(Encode(BytePairEncoder(builder.vocabulary), "abc"), (Ids{last_c + 2, last_c}));
}

TEST(BytePairEncoderTest, LongWordsTakeNoQuadraticTime) {
  VocabularyBuilder builder;
  TokenId run = 'a';
  for (int i = 0; i < 5; ++i) run = builder.Merge(run, run);  // 32 letters
  const BytePairEncoder encoder(builder.vocabulary);
  constexpr size_t kLength = 1 << 20;
  EXPECT_EQ(Encode(encoder, std::string(kLength, 'a')), Ids(kLength / 32, run));
}

}  // namespace
}  // namespace ddl
