#include "server/conversion/request_checks.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/status_details.h"
#include "tests/server/byte_tokenizer.h"

namespace ddl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A small model with the bytes' tokenizer: a context of 8 tokens, 257 ids, two layers, two value
// channels of 4 numbers.
RequestLimits Limits() {
  static const auto* const tokenizer = new std::shared_ptr<const Tokenizer>(MakeByteTokenizer());
  RequestLimits limits;
  limits.model = "small";
  limits.vocab_size = kByteTokenizerVocabSize;
  limits.hidden_size = 4;
  limits.value_channels = 2;
  limits.num_layers = 2;
  limits.max_context_length = 8;
  limits.max_client_batch_size = 2;
  limits.default_max_tokens = 5;
  limits.tokenizer = tokenizer->get();
  return limits;
}

template <typename Message>
Message FromText(const std::string& text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

// What is wrong with a message that is only wrong in one field: its path, and the words after it.
struct BadField {
  const char* message;  // in protobuf's text format, beside what the call needs
  const char* field;
  const char* description;
};

template <typename Call>
void ExpectViolation(const absl::StatusOr<Call>& call, const BadField& row) {
  EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument) << row.message;
  const std::vector<FieldViolation> violations = DetailsOf(call.status()).field_violations;
  ASSERT_EQ(violations.size(), 1u) << row.message << ": " << call.status();
  EXPECT_EQ(violations[0].field, row.field) << row.message;
  EXPECT_EQ(violations[0].description, row.description) << row.message;
  EXPECT_THAT(std::string(call.status().message()),
              HasSubstr(std::string(row.field) + ": " + row.description));
}

TEST(RequestChecksTest, GenerateNamesTheBadField) {
  const BadField rows[] = {
      {"sampling { temperature: -0.1 }", "sampling.temperature", "must be 0...2, not -0.1"},
      {"sampling { temperature: 2.1 }", "sampling.temperature", "must be 0...2, not 2.1"},
      {"sampling { temperature: nan }", "sampling.temperature", "must be 0...2, not nan"},
      {"sampling { top_p: 0 }", "sampling.top_p", "must be more than 0 and at most 1, not 0"},
      {"sampling { top_p: 1.1 }", "sampling.top_p", "must be more than 0 and at most 1, not 1.1"},
      {"sampling { top_p: nan }", "sampling.top_p", "must be more than 0 and at most 1, not nan"},
      {"sampling { top_k: 0 }", "sampling.top_k", "must be -1 (off) or at least 1, not 0"},
      {"sampling { top_k: -2 }", "sampling.top_k", "must be -1 (off) or at least 1, not -2"},
      {"sampling { min_p: -0.1 }", "sampling.min_p", "must be 0...1, not -0.1"},
      {"sampling { min_p: 1.1 }", "sampling.min_p", "must be 0...1, not 1.1"},
      {"sampling { repetition_penalty: 0 }", "sampling.repetition_penalty",
       "must be more than 0 and finite, not 0"},
      {"sampling { repetition_penalty: inf }", "sampling.repetition_penalty",
       "must be more than 0 and finite, not inf"},
      {"sampling { frequency_penalty: -2.1 }", "sampling.frequency_penalty",
       "must be -2...2, not -2.1"},
      {"sampling { presence_penalty: 2.1 }", "sampling.presence_penalty",
       "must be -2...2, not 2.1"},
      {"sampling { logit_bias { key: 257 value: 1 } }", "sampling.logit_bias[257]",
       "the token id must be less than the vocabulary's size, 257, not 257"},
      {"sampling { logit_bias { key: 1 value: 100.5 } }", "sampling.logit_bias[1]",
       "must be -100...100, not 100.5"},
      {"sampling { n: 0 }", "sampling.n", "must be 1...16, not 0"},
      {"sampling { n: 17 }", "sampling.n", "must be 1...16, not 17"},
      {"logprobs { logprobs: 21 }", "logprobs.logprobs", "must be 0...20, not 21"},
      {"logprobs { prompt_logprobs: 21 }", "logprobs.prompt_logprobs", "must be 0...20, not 21"},
      {"stopping { max_tokens: 0 }", "stopping.max_tokens", "must be at least 1, not 0"},
      {"stopping { max_tokens: 2 min_tokens: 3 }", "stopping.min_tokens",
       "must be at most stopping.max_tokens, 2, not 3"},
      {"stopping { stop: 'a' stop: '' }", "stopping.stop[1]", "must be 1...1024 bytes long, not 0"},
      {"stopping { stop_token_ids: 257 }", "stopping.stop_token_ids[0]",
       "must be less than the vocabulary's size, 257, not 257"},
      {"stream_interval: 0", "stream_interval", "must be at least 1, not 0"},
      {"queue_timeout { }", "queue_timeout", "must be more than 0s, not 0"},
      {"priority: 9", "priority", "must be a value of the enum Priority, not 9"},
      {"truncation { max_tokens: 0 }", "truncation.max_tokens", "must be at least 1, not 0"},
      {"truncation { direction: 9 }", "truncation.direction",
       "must be a value of the enum TruncationDirection, not 9"},
      {"prompt { }", "prompt", "must hold text or token_ids"},
      {"prompt { text: '' }", "prompt", "must hold at least 1 token, not 0"},
      {"prompt { token_ids { ids: 1 ids: 257 } }", "prompt.token_ids.ids[1]",
       "must be less than the vocabulary's size, 257, not 257"},
      {"prompt { text: '12345678' }", "prompt",
       "must be 1...7 tokens long (the context less one), not 8; truncation.truncate cuts it"},
      {"prompt { text: 'abc' } truncation { max_tokens: 2 }", "prompt",
       "must be 1...2 tokens long (truncation.max_tokens), not 3; truncation.truncate cuts it"},
  };
  for (const BadField& row : rows) {
    auto request = FromText<v1::GenerateRequest>(row.message);
    if (!request.has_prompt()) request.mutable_prompt()->set_text("abc");
    ExpectViolation(ParseGenerate(request, Limits()), row);
  }
}

TEST(RequestChecksTest, EmbedNamesTheBadField) {
  const BadField rows[] = {
      {"params { dimensions: 0 }", "params.dimensions", "must be 1...4, not 0"},
      {"params { dimensions: 5 }", "params.dimensions", "must be 1...4, not 5"},
      {"params { dimensions: 9 readout: DDL_READOUT_STATE_FLAT }", "params.dimensions",
       "must be 1...8, not 9"},
      {"params { pooling: 99 }", "params.pooling", "must be a value of the enum Pooling, not 99"},
      {"params { readout: 99 }", "params.readout",
       "must be a value of the enum DdlReadout, not 99"},
      {"params { encoding_format: 99 }", "params.encoding_format",
       "must be a value of the enum EncodingFormat, not 99"},
      {"params { layer: 2 }", "params.layer", "must be -2...1, not 2"},
      {"params { layer: -3 }", "params.layer", "must be -2...1, not -3"},
      {"params { channel: 0 }", "params.channel",
       "must be unset, not 0, where params.readout is not DDL_READOUT_CHANNEL"},
      {"params { channel: 2 readout: DDL_READOUT_CHANNEL }", "params.channel",
       "must be 0...1, not 2"},
      {"inputs { text: 'a' } inputs { text: 'b' } inputs { text: 'c' }", "inputs",
       "must hold 1...2 of them a call, not 3"},
      {"inputs { text: '123456789' }", "inputs[0]",
       "must be 1...8 tokens long (the context), not 9; params.truncation.truncate cuts it"},
  };
  for (const BadField& row : rows) {
    auto request = FromText<v1::EmbedRequest>(row.message);
    if (request.inputs_size() == 0) request.add_inputs()->set_text("abc");
    ExpectViolation(ParseEmbed(request, Limits()), row);
  }
  ExpectViolation(ParseEmbed({}, Limits()),
                  {"nothing", "inputs", "must hold 1...2 of them a call, not 0"});
}

TEST(RequestChecksTest, ScoreNamesTheBadField) {
  const BadField rows[] = {
      {"", "inputs", "must hold 1...2 of them a call, not 0"},
      {"inputs { text: '123456789' }", "inputs[0]",
       "must be 1...8 tokens long (the context), not 9"},
      {"inputs { text: 'a' } inputs { }", "inputs[1]", "must hold text or token_ids"},
  };
  for (const BadField& row : rows) {
    ExpectViolation(ParseScore(FromText<v1::ScoreRequest>(row.message), Limits()), row);
  }
}

// Rows of the embedding that no token has: what comes first is not scored.
TEST(RequestChecksTest, PaddingRowsCannotBeScored) {
  RequestLimits limits = Limits();
  limits.vocab_size = kByteTokenizerVocabSize + 7;
  const BadField rows[] = {
      {"inputs { token_ids { ids: 1 ids: 257 } }", "inputs[0].token_ids.ids[1]",
       "must be less than 257 to be scored, not 257: ids from there on are padding rows of the "
       "embedding"},
      {"inputs { text: 'a' } inputs { token_ids { ids: 257 ids: 256 ids: 263 } }",
       "inputs[1].token_ids.ids[2]",
       "must be less than 257 to be scored, not 263: ids from there on are padding rows of the "
       "embedding"},
      {"inputs { token_ids { ids: 1 ids: 264 } }", "inputs[0].token_ids.ids[1]",
       "must be less than the vocabulary's size, 264, not 264"},
  };
  for (const BadField& row : rows) {
    ExpectViolation(ParseScore(FromText<v1::ScoreRequest>(row.message), limits), row);
  }
  const char* fine = "inputs { token_ids { ids: 263 ids: 256 } } inputs { token_ids { ids: 257 } }";
  EXPECT_TRUE(ParseScore(FromText<v1::ScoreRequest>(fine), limits).ok());
  limits.tokenizer = nullptr;  // then no row is known to be padding
  EXPECT_TRUE(
      ParseScore(FromText<v1::ScoreRequest>("inputs { token_ids { ids: 1 ids: 263 } }"), limits)
          .ok());
}

TEST(RequestChecksTest, PromptLogprobsScoreThePrompt) {
  RequestLimits limits = Limits();
  limits.vocab_size = kByteTokenizerVocabSize + 7;
  const std::string prompt = "prompt { token_ids { ids: 1 ids: 260 } }";
  EXPECT_TRUE(ParseGenerate(FromText<v1::GenerateRequest>(prompt), limits).ok());
  ExpectViolation(
      ParseGenerate(FromText<v1::GenerateRequest>(prompt + "logprobs { prompt_logprobs: 0 }"),
                    limits),
      {"prompt_logprobs", "prompt.token_ids.ids[1]",
       "must be less than 257 to be scored, not 260: ids from there on are padding rows of the "
       "embedding"});
}

TEST(RequestChecksTest, TokenizeNamesTheBadField) {
  ExpectViolation(ParseTokenize({}, Limits()),
                  {"nothing", "texts", "must hold 1...2 of them a call, not 0"});
  ExpectViolation(
      ParseDetokenize(
          FromText<v1::DetokenizeRequest>("sequences { ids: 65 } sequences { ids: 66 ids: 257 }"),
          Limits()),
      {"an id", "sequences[1].ids[1]", "must be less than the vocabulary's size, 257, not 257"});
}

TEST(RequestChecksTest, NamesEveryBadField) {
  const auto request = FromText<v1::GenerateRequest>(
      "prompt { text: '' } sampling { temperature: 3 top_p: 2 } stopping { max_tokens: 0 }");
  std::vector<std::string> fields;
  for (const FieldViolation& violation :
       DetailsOf(ParseGenerate(request, Limits()).status()).field_violations) {
    fields.push_back(violation.field);
  }
  EXPECT_THAT(fields, ElementsAre("sampling.temperature", "sampling.top_p", "stopping.max_tokens",
                                  "prompt"));
}

TEST(RequestChecksTest, AcceptsTheEdges) {
  const std::vector<const char*> rows = {
      "sampling { temperature: 0 }",
      "sampling { temperature: 2 }",
      "sampling { top_p: 1e-6 }",
      "sampling { top_p: 1 }",
      "sampling { top_k: -1 }",
      "sampling { top_k: 1 }",
      "sampling { min_p: 0 }",
      "sampling { min_p: 1 }",
      "sampling { frequency_penalty: -2 }",
      "sampling { presence_penalty: 2 }",
      "sampling { n: 16 }",
      "logprobs { logprobs: 20 prompt_logprobs: 0 }",
      "stopping { max_tokens: 1 }",
      "stopping { max_tokens: 3 min_tokens: 3 }",
      "prompt { text: '1234567' }",
      "prompt { token_ids { ids: 256 } }",
  };
  for (const char* row : rows) {
    auto request = FromText<v1::GenerateRequest>(row);
    if (!request.has_prompt()) request.mutable_prompt()->set_text("abc");
    EXPECT_EQ(ParseGenerate(request, Limits()).status(), absl::OkStatus()) << row;
  }
}

TEST(RequestChecksTest, LeavesTheDefaultsToTheModel) {
  const auto call =
      ParseGenerate(FromText<v1::GenerateRequest>("prompt { text: 'abc' }"), Limits());
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_THAT(call->params().prompt, ElementsAre('a', 'b', 'c'));
  EXPECT_EQ(call->params().stopping.max_tokens, 5);
  EXPECT_EQ(call->params().n, 1);
  EXPECT_EQ(call->params().logprobs, -1);
  EXPECT_TRUE(call->params().use_prefix_cache);
  EXPECT_EQ(call->request.priority, Priority::kNormal);
  EXPECT_EQ(call->request.queue_timeout, absl::InfiniteDuration());
  EXPECT_FALSE(call->request.id.empty());
}

TEST(RequestChecksTest, CutsWhatIsTooLong) {
  struct Row {
    const char* truncation;
    std::vector<TokenId> tokens;
  };
  const Row rows[] = {
      {"truncate: true max_tokens: 2", {'1', '2'}},
      {"truncate: true max_tokens: 2 direction: TRUNCATION_DIRECTION_LEFT", {'8', '9'}},
      {"truncate: true", {'1', '2', '3', '4', '5', '6', '7', '8'}},
  };
  for (const Row& row : rows) {
    const auto call =
        ParseEmbed(FromText<v1::EmbedRequest>(
                       std::string("inputs { text: '123456789' } params { truncation {") +
                       row.truncation + "} }"),
                   Limits());
    ASSERT_TRUE(call.ok()) << call.status();
    EXPECT_EQ(call->params().inputs[0], row.tokens) << row.truncation;
    EXPECT_THAT(call->truncated, ElementsAre(true));
  }
}

TEST(RequestChecksTest, SpecialTokensMayBeText) {
  RequestLimits limits = Limits();
  limits.max_context_length = 32;
  const std::string text = "a<|endoftext|>";
  const std::vector<TokenId> parsed = {'a', kByteTokenizerEos};
  const std::vector<TokenId> plain(text.begin(), text.end());
  struct Row {
    std::string parse_special_tokens;
    std::vector<TokenId> tokens;
    std::string echo;
  };
  const Row rows[] = {{"", parsed, "a"},
                      {"parse_special_tokens: true", parsed, "a"},
                      {"parse_special_tokens: false", plain, text}};
  for (const Row& row : rows) {
    const std::string input = "inputs { text: '" + text + "' }";
    const auto generate =
        ParseGenerate(FromText<v1::GenerateRequest>("prompt { text: '" + text + "' } echo: true " +
                                                    row.parse_special_tokens),
                      limits);
    ASSERT_TRUE(generate.ok()) << generate.status();
    EXPECT_EQ(generate->params().prompt, row.tokens) << row.parse_special_tokens;
    EXPECT_EQ(generate->echo, row.echo) << row.parse_special_tokens;
    const auto embed = ParseEmbed(
        FromText<v1::EmbedRequest>(input + "params { " + row.parse_special_tokens + " }"), limits);
    ASSERT_TRUE(embed.ok()) << embed.status();
    EXPECT_THAT(embed->params().inputs, ElementsAre(row.tokens)) << row.parse_special_tokens;
    const auto score =
        ParseScore(FromText<v1::ScoreRequest>(input + row.parse_special_tokens), limits);
    ASSERT_TRUE(score.ok()) << score.status();
    EXPECT_THAT(score->params().inputs, ElementsAre(row.tokens)) << row.parse_special_tokens;
    const auto tokenize = ParseTokenize(
        FromText<v1::TokenizeRequest>("texts: '" + text + "' " + row.parse_special_tokens), limits);
    ASSERT_TRUE(tokenize.ok()) << tokenize.status();
    std::vector<TokenId> tokens;
    for (const Tokenizer::Token& token : tokenize->front()) tokens.push_back(token.id);
    EXPECT_EQ(tokens, row.tokens) << row.parse_special_tokens;
  }
}

// Text in and out takes a tokenizer; token ids do not.
TEST(RequestChecksTest, TextTakesATokenizer) {
  RequestLimits limits = Limits();
  limits.tokenizer = nullptr;
  const std::string ids = "prompt { token_ids { ids: 1 } }";
  struct Row {
    const char* field;
    std::function<absl::Status()> parse;
  };
  const auto generate = [&](const std::string& text) {
    return ParseGenerate(FromText<v1::GenerateRequest>(text), limits).status();
  };
  EXPECT_EQ(generate(ids), absl::OkStatus());
  const Row rows[] = {
      {"prompt.text", [&] { return generate("prompt { text: 'a' }"); }},
      {"stopping.stop", [&] { return generate(ids + "stopping { stop: 'a' }"); }},
      {"echo", [&] { return generate(ids + "echo: true"); }},
      {"inputs[0].text",
       [&] {
         return ParseScore(FromText<v1::ScoreRequest>("inputs { text: 'a' }"), limits).status();
       }},
      {"texts", [&] { return ParseTokenize({}, limits).status(); }},
      {"sequences", [&] { return ParseDetokenize({}, limits).status(); }},
  };
  for (const Row& row : rows) {
    const absl::Status status = row.parse();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << row.field;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(std::string(row.field) + " needs a tokenizer, and model 'small'"));
  }
}

TEST(RequestChecksTest, AGptHasNoStatistics) {
  RequestLimits limits = Limits();
  limits.has_delta_rule = false;
  ExpectViolation(
      ParseGenerate(
          FromText<v1::GenerateRequest>("prompt { text: 'a' } ddl_stats { per_layer_beta: true }"),
          limits),
      {"ddl_stats", "ddl_stats", "must be unset: model 'small' is a gpt, which has no delta rule"});
}

}  // namespace
}  // namespace ddl
