#include "server/conversion/responses.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/server/byte_tokenizer.h"

namespace ddl {
namespace {

const ModelIdentity kNoModel;

GenerateCall CallOf(std::vector<TokenId> prompt) {
  GenerateCall call;
  call.request.id = "r1";
  GenerateParams params;
  params.prompt = std::move(prompt);
  params.sampling.seed = 40;
  call.request.params = std::move(params);
  return call;
}

TEST(ResponsesTest, GenerateHasTextTokensAndUsage) {
  GenerateCall call = CallOf({'a', 'b'});
  call.echo = "ab";
  call.with_logprobs = true;
  const auto tokenizer = MakeByteTokenizer();
  RequestEnd end;
  end.completions = {{.index = 0, .finish_reason = FinishReason::kEos, .cumulative_logprob = -2.5},
                     {.index = 1, .finish_reason = FinishReason::kStop, .matched_stop_str = "!"}};
  end.usage = {.prompt_tokens = 2, .completion_tokens = 3, .cached_tokens = 1};
  end.timings.queue = absl::Milliseconds(1500);
  const std::vector<CompletionResult> results = {
      {.text = "c", .tokens = {{.id = 'c', .logprob = -0.5f}}}, {.text = "d!", .tokens = {}}};
  const v1::GenerateResponse response =
      ToGenerateResponse(call, {.name = "m", .version = "v", .system_fingerprint = "f"},
                         tokenizer.get(), {}, results, end);
  EXPECT_EQ(response.request_id(), "r1");
  EXPECT_EQ(response.model(), "m");
  EXPECT_EQ(response.model_version(), "v");
  EXPECT_EQ(response.system_fingerprint(), "f");
  ASSERT_EQ(response.completions_size(), 2);
  const v1::Completion& first = response.completions(0);
  EXPECT_EQ(first.text(), "abc") << "the prompt goes before it";
  ASSERT_EQ(first.tokens_size(), 1);
  EXPECT_EQ(first.tokens(0).token_id(), uint32_t{'c'});
  EXPECT_EQ(first.tokens(0).token_bytes(), "c");
  EXPECT_EQ(first.tokens(0).logprob(), -0.5f);
  EXPECT_EQ(first.finish_reason(), v1::FINISH_REASON_EOS);
  EXPECT_EQ(first.cumulative_logprob(), -2.5);
  EXPECT_EQ(first.seed(), 40u);
  EXPECT_EQ(response.completions(1).seed(), 41u);
  EXPECT_EQ(response.completions(1).matched_stop_str(), "!");
  EXPECT_EQ(response.usage().total_tokens(), 5u);
  EXPECT_EQ(response.usage().cached_tokens(), 1u);
  EXPECT_EQ(response.timings().queue().seconds(), 1);
  EXPECT_EQ(response.timings().queue().nanos(), 500'000'000);
}

TEST(ResponsesTest, EmbeddingsComeInTheOrderOfTheInputs) {
  EmbedCall call;
  EmbedParams params;
  params.inputs = {{1}, {2, 3}};
  call.request.params = std::move(params);
  call.truncated = {false, true};
  const v1::EmbedResponse response =
      ToEmbedResponse(call, kNoModel, {{1, {{3.0f, 4.0f}}}, {0, {{1.0f, 2.0f}}}}, {});
  ASSERT_EQ(response.embeddings_size(), 2);
  EXPECT_EQ(response.embeddings(0).vectors(0).values(0), 1.0f);
  EXPECT_EQ(response.embeddings(1).vectors(0).values(1), 4.0f);
  EXPECT_EQ(response.embeddings(1).prompt_tokens(), 2u);
  EXPECT_TRUE(response.embeddings(1).truncated());
  EXPECT_EQ(response.dimensions(), 2u);
}

// bfloat16 is the upper half, rounded to nearest with ties to even.
TEST(ResponsesTest, EncodesVectors) {
  struct Row {
    EncodingFormat encoding;
    float value;
    std::string bytes;
  };
  const Row rows[] = {
      {EncodingFormat::kBytesF32Le, 1.0f, std::string("\x00\x00\x80\x3F", 4)},
      {EncodingFormat::kBytesBf16Le, 1.0f, std::string("\x80\x3F", 2)},
      {EncodingFormat::kBytesBf16Le, 1.00390625f, std::string("\x80\x3F", 2)},  // a tie: down
      {EncodingFormat::kBytesBf16Le, 1.01171875f, std::string("\x82\x3F", 2)},  // a tie: up
      {EncodingFormat::kBytesBf16Le, 1.0040f, std::string("\x81\x3F", 2)},
  };
  for (const Row& row : rows) {
    EmbedCall call;
    call.encoding = row.encoding;
    call.truncated = {false};
    EmbedParams params;
    params.inputs = {{1}};
    call.request.params = std::move(params);
    const v1::EmbedResponse response = ToEmbedResponse(call, kNoModel, {{0, {{row.value}}}}, {});
    EXPECT_EQ(response.embeddings(0).vectors(0).raw(), row.bytes) << row.value;
    EXPECT_EQ(response.embeddings(0).vectors(0).values_size(), 0);
  }
}

TEST(ResponsesTest, ScoresAddUp) {
  ScoreCall call;
  call.request.params = ScoreParams{.inputs = {{'a', 'b', 'c'}, {'a'}}};
  const v1::ScoreResponse response = ToScoreResponse(
      call, nullptr, {{1, {}}, {0, {{.id = 'b', .logprob = -1.0f}, {.id = 'c', .logprob = -2.0f}}}},
      {});
  ASSERT_EQ(response.scores_size(), 2);
  EXPECT_EQ(response.scores(0).tokens_size(), 3) << "the first, which nothing predicts, as well";
  EXPECT_EQ(response.scores(0).total_logprob(), -3.0);
  EXPECT_EQ(response.scores(0).mean_nll(), 1.5);
  EXPECT_EQ(response.scores(1).mean_nll(), 0.0) << "nothing was predicted";
}

TEST(ResponsesTest, TokenizesBothWays) {
  const auto tokenizer = MakeByteTokenizer();
  const v1::TokenizeResponse tokens =
      ToTokenizeResponse({*tokenizer->EncodeWithOffsets("hi", {})}, *tokenizer);
  ASSERT_EQ(tokens.lists_size(), 1);
  ASSERT_EQ(tokens.lists(0).tokens_size(), 2);
  EXPECT_EQ(tokens.lists(0).tokens(1).bytes(), "i");
  EXPECT_EQ(tokens.lists(0).tokens(1).start(), 1u);
  const v1::DetokenizeResponse texts = ToDetokenizeResponse(
      {.sequences = {{'h', 'i', kByteTokenizerEos}, {}}, .skip_special_tokens = true}, *tokenizer);
  ASSERT_EQ(texts.texts_size(), 2);
  EXPECT_EQ(texts.texts(0), "hi");
  EXPECT_EQ(texts.texts(1), "");
}

}  // namespace
}  // namespace ddl
