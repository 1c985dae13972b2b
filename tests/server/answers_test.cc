#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/server/byte_tokenizer.h"
#include "tests/server/engine/engine_fixture.h"
#include "tests/server/test_server.h"

// What Generate, Embed and Score answer to each of their parameters, and what they refuse.

namespace ddl {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

v1::GenerateRequest SeededRequest(const std::vector<TokenId>& prompt, int max_tokens,
                                  uint64_t seed) {
  v1::GenerateRequest request = GreedyRequest(prompt, max_tokens);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(seed);
  return request;
}

v1::Input* AddTokens(const std::vector<TokenId>& tokens, v1::Input* input) {
  for (const TokenId id : tokens) input->mutable_token_ids()->add_ids(id);
  return input;
}

v1::EmbedRequest EmbedOf(const std::vector<std::vector<TokenId>>& inputs) {
  v1::EmbedRequest request;
  for (const auto& input : inputs) AddTokens(input, request.add_inputs());
  return request;
}

v1::ScoreRequest ScoreOf(const std::vector<std::vector<TokenId>>& inputs) {
  v1::ScoreRequest request;
  for (const auto& input : inputs) AddTokens(input, request.add_inputs());
  return request;
}

void ExpectViolation(const grpc::Status& status, const char* field, const char* words) {
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
      << field << ": " << status.error_message();
  const DecodedStatus details = Decode(status);
  ASSERT_EQ(details.bad_request.field_violations_size(), 1) << field << " " << words;
  EXPECT_EQ(details.bad_request.field_violations(0).field(), field);
  EXPECT_THAT(details.bad_request.field_violations(0).description(), HasSubstr(words)) << field;
  EXPECT_THAT(status.error_message(), HasSubstr(field));
}

TEST(AnswersTest, RefusesGenerate) {
  TestServer server;
  using Change = std::function<void(v1::GenerateRequest*)>;
  const auto sampling = [](void (v1::SamplingParams::*set)(float), float value) -> Change {
    return [=](auto* r) { (r->mutable_sampling()->*set)(value); };
  };
  const auto bias = [](uint32_t id, float value) -> Change {
    return [=](auto* r) { (*r->mutable_sampling()->mutable_logit_bias())[id] = value; };
  };
  const auto n = [](uint32_t value) -> Change {
    return [=](auto* r) { r->mutable_sampling()->set_n(value); };
  };
  using Sampling = v1::SamplingParams;
  struct Row {
    const char* field;
    Change change;
    const char* words;
  };
  const Row rows[] = {
      {"sampling.temperature", sampling(&Sampling::set_temperature, kInf), "0...2, not inf"},
      {"sampling.top_p", sampling(&Sampling::set_top_p, kNan), "not nan"},
      {"sampling.min_p", sampling(&Sampling::set_min_p, -0.1f), "0...1, not -0.1"},
      {"sampling.min_p", sampling(&Sampling::set_min_p, 1.1f), "0...1, not 1.1"},
      {"sampling.min_p", sampling(&Sampling::set_min_p, kNan), "0...1, not nan"},
      {"sampling.repetition_penalty", sampling(&Sampling::set_repetition_penalty, 0),
       "more than 0 and finite, not 0"},
      {"sampling.repetition_penalty", sampling(&Sampling::set_repetition_penalty, -1), "not -1"},
      {"sampling.repetition_penalty", sampling(&Sampling::set_repetition_penalty, kInf), "not inf"},
      {"sampling.repetition_penalty", sampling(&Sampling::set_repetition_penalty, kNan), "not nan"},
      {"sampling.frequency_penalty", sampling(&Sampling::set_frequency_penalty, 2.5f),
       "-2...2, not 2.5"},
      {"sampling.frequency_penalty", sampling(&Sampling::set_frequency_penalty, kNan), "not nan"},
      {"sampling.presence_penalty", sampling(&Sampling::set_presence_penalty, -2.5f),
       "-2...2, not -2.5"},
      {"sampling.presence_penalty", sampling(&Sampling::set_presence_penalty, kInf), "not inf"},
      {"sampling.logit_bias[260]", bias(260, 1), "vocabulary's size, 260, not 260"},
      {"sampling.logit_bias[7]", bias(7, 100.5f), "-100...100, not 100.5"},
      {"sampling.logit_bias[7]", bias(7, -kInf), "-100...100, not -inf"},
      {"sampling.logit_bias[7]", bias(7, kNan), "-100...100, not nan"},
      {"sampling.n", n(0), "1...16, not 0"},
      {"sampling.n", n(17), "1...16, not 17"},
      {"logprobs.prompt_logprobs", [](auto* r) { r->mutable_logprobs()->set_prompt_logprobs(21); },
       "0...20, not 21"},
  };
  for (const Row& row : rows) {
    v1::GenerateRequest request = GreedyRequest({1, 2}, 1);
    row.change(&request);
    v1::GenerateResponse response;
    ExpectViolation(Generate(server, request, &response), row.field, row.words);
    ExpectViolation(ReadStream(server, request).status, row.field, row.words);
  }
}

// The numbers that are just allowed.
TEST(AnswersTest, AcceptsTheEdges) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest({1, 2}, 2);
  v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(2);
  sampling.set_top_p(1e-6f);
  sampling.set_min_p(1);
  sampling.set_repetition_penalty(1e-3f);
  sampling.set_frequency_penalty(-2);
  sampling.set_presence_penalty(2);
  (*sampling.mutable_logit_bias())[0] = -100;
  (*sampling.mutable_logit_bias())[259] = 100;
  sampling.set_n(16);
  request.mutable_logprobs()->set_prompt_logprobs(20);
  request.set_use_prefix_cache(false);
  v1::GenerateResponse response;
  const grpc::Status status = Generate(server, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.completions_size(), 16);
  EXPECT_EQ(response.usage().completion_tokens(), 32u);
}

TEST(AnswersTest, RefusesEmbed) {
  TestServer server;
  v1::ModelInfo model;
  grpc::ClientContext context;
  ASSERT_TRUE(server.models().GetModelInfo(&context, {}, &model).ok());
  const auto layers = static_cast<int32_t>(model.num_layers());
  const uint32_t width = model.hidden_size();
  const uint32_t channels = model.value_channels();
  struct Row {
    const char* field;
    std::function<void(v1::EmbedParams*)> change;
    const char* words;
  };
  const Row rows[] = {
      {"params.layer", [&](auto* p) { p->set_layer(layers); }, "must be -"},
      {"params.layer", [&](auto* p) { p->set_layer(-layers - 1); }, "must be -"},
      {"params.readout", [](auto* p) { p->set_readout(static_cast<v1::DdlReadout>(9)); },
       "DdlReadout, not 9"},
      {"params.channel", [](auto* p) { p->set_channel(0); }, "where params.readout is not"},
      {"params.channel",
       [](auto* p) {
         p->set_channel(0);
         p->set_readout(v1::DDL_READOUT_STATE_FLAT);
       },
       "where params.readout is not"},
      {"params.channel",
       [&](auto* p) {
         p->set_channel(channels);
         p->set_readout(v1::DDL_READOUT_CHANNEL);
       },
       "must be 0..."},
      {"params.dimensions", [&](auto* p) { p->set_dimensions(width + 1); }, "must be 1..."},
      {"params.dimensions",
       [&](auto* p) {
         p->set_readout(v1::DDL_READOUT_STATE_FLAT);
         p->set_dimensions(width * channels + 1);
       },
       "must be 1..."},
  };
  for (const Row& row : rows) {
    v1::EmbedRequest request = EmbedOf({{1, 2}});
    row.change(request.mutable_params());
    v1::EmbedResponse response;
    ExpectViolation(Embed(server, request, &response), row.field, row.words);
  }
}

TEST(AnswersTest, RefusesScore) {
  TestServer::Options options;
  options.config.max_client_batch_size = 2;
  TestServer server(options);
  struct Row {
    std::vector<std::vector<TokenId>> inputs;
    const char* field;
    const char* words;
  };
  const Row rows[] = {
      {{}, "inputs", "1...2 of them a call, not 0"},
      {{{1}, {2}, {3}}, "inputs", "1...2 of them a call, not 3"},
      {{{1}, {}}, "inputs[1]", "text or token_ids"},
      {{{1}, Prompt(65)}, "inputs[1]", "must be 1...64 tokens long (the context), not 65"},
      {{{1, 260}}, "inputs[0].token_ids.ids[1]", "260, not 260"},
  };
  for (const Row& row : rows) {
    v1::ScoreResponse response;
    ExpectViolation(Score(server, ScoreOf(row.inputs), &response), row.field, row.words);
  }
  v1::ScoreRequest other = ScoreOf({{1}});
  other.set_model("other");
  v1::ScoreResponse response;
  EXPECT_EQ(Score(server, other, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Score(server, ScoreOf({Prompt(64), {1}}), &response).ok());
}

TEST(AnswersTest, RefusesDdlStatisticsOfAGpt) {
  TestServer::Options options;
  options.variant = "gpt";
  options.config.engine.gate_sample_interval = absl::InfiniteDuration();  // the fake has gates
  TestServer server(options);
  v1::GenerateRequest generate = GreedyRequest({1}, 1);
  generate.mutable_ddl_stats();  // nothing is asked for
  v1::GenerateResponse generated;
  EXPECT_TRUE(Generate(server, generate, &generated).ok());
  generate.mutable_ddl_stats()->set_update_norms(true);
  ExpectViolation(Generate(server, generate, &generated), "ddl_stats", "'fake' is a gpt");
  v1::EmbedRequest embed = EmbedOf({{1}});
  embed.mutable_ddl_stats()->set_per_token_beta(true);
  v1::EmbedResponse embedded;
  ExpectViolation(Embed(server, embed, &embedded), "ddl_stats", "'fake' is a gpt");
}

TEST(AnswersTest, SeveralCompletionsAreThoseOfTheirSeeds) {
  TestServer server;
  v1::GenerateRequest request = SeededRequest({1, 2, 3}, 10, 40);
  request.mutable_sampling()->set_n(4);
  request.mutable_stopping()->add_stop_token_ids(7);
  request.mutable_stopping()->add_stop_token_ids(99);
  v1::GenerateResponse all;
  ASSERT_TRUE(Generate(server, request, &all).ok());
  ASSERT_EQ(all.completions_size(), 4);
  const Streamed streamed = ReadStream(server, request);
  ASSERT_TRUE(streamed.status.ok());
  const v1::StreamEnd& end = streamed.events.back().end();
  ASSERT_EQ(end.completions_size(), 4);
  uint32_t tokens = 0;
  for (int i = 0; i < 4; ++i) {
    v1::GenerateRequest single = request;
    single.mutable_sampling()->clear_n();
    single.mutable_sampling()->set_seed(40 + i);
    v1::GenerateResponse alone;
    ASSERT_TRUE(Generate(server, single, &alone).ok());
    v1::Completion expected = alone.completions(0);
    expected.set_index(i);
    EXPECT_EQ(all.completions(i).SerializeAsString(), expected.SerializeAsString()) << i;
    EXPECT_EQ(streamed.Text(i), expected.text()) << i;
    EXPECT_EQ(streamed.TokenIds(i), Ids(expected.tokens())) << i;
    tokens += expected.tokens_size();
    expected.clear_text();
    expected.clear_tokens();
    EXPECT_EQ(end.completions(i).SerializeAsString(), expected.SerializeAsString()) << i;
  }
  EXPECT_EQ(all.usage().prompt_tokens(), 3u);
  EXPECT_EQ(all.usage().completion_tokens(), tokens);
  EXPECT_EQ(end.usage().completion_tokens(), tokens);
}

TEST(AnswersTest, SeveralCompletionsGatherTheirDeltasApart) {
  TestServer server;
  v1::GenerateRequest request = SeededRequest({1, 2, 3}, 10, 40);
  request.mutable_sampling()->set_n(3);
  request.set_stream_interval(4);
  const Streamed streamed = ReadStream(server, request);
  ASSERT_TRUE(streamed.status.ok());
  EXPECT_EQ(streamed.Shape(), "S" + std::string(3 * 3, 'D') + "E");
  for (const auto& event : streamed.events) {
    EXPECT_LE(event.delta().tokens_size(), 4);
  }
  for (uint32_t i = 0; i < 3; ++i) EXPECT_THAT(streamed.TokenIds(i), SizeIs(10)) << i;
}

TEST(AnswersTest, EchoGoesBeforeTheCompletion) {
  TestServer server;
  struct Row {
    std::vector<TokenId> prompt;
    bool skip_special_tokens;
    std::string echo;
  };
  const Row rows[] = {
      {{'H', 'i', ' '}, true, "Hi "},
      {{kByteTokenizerEos, 'H'}, true, "H"},
      {{kByteTokenizerEos, 'H'}, false, "<|endoftext|>H"},
      {{'H', 0xC3}, true, "H\xEF\xBF\xBD"},  // half a character
      {{kByteTokenizerEos}, true, ""},
      {{259}, true, ""},  // a padding row stands for nothing
  };
  for (const Row& row : rows) {
    for (const int n : {1, 3}) {
      v1::GenerateRequest request = SeededRequest(row.prompt, 5, 3);
      request.mutable_sampling()->set_n(n);
      request.set_skip_special_tokens(row.skip_special_tokens);
      v1::GenerateResponse plain;
      ASSERT_TRUE(Generate(server, request, &plain).ok());
      request.set_echo(true);
      v1::GenerateResponse echoed;
      ASSERT_TRUE(Generate(server, request, &echoed).ok());
      const Streamed streamed = ReadStream(server, request);
      EXPECT_EQ(streamed.Shape(), "S" + std::string(n + 5 * n, 'D') + "E");
      for (int i = 0; i < n; ++i) {
        EXPECT_EQ(echoed.completions(i).text(), row.echo + plain.completions(i).text());
        EXPECT_EQ(Ids(echoed.completions(i).tokens()), Ids(plain.completions(i).tokens()));
        EXPECT_EQ(streamed.Text(i), echoed.completions(i).text());
        EXPECT_EQ(streamed.TokenIds(i), Ids(echoed.completions(i).tokens()));
        const v1::StreamDelta& first = streamed.events[1 + i].delta();
        EXPECT_EQ(first.index(), static_cast<uint32_t>(i));
        EXPECT_EQ(first.text(), row.echo);
        EXPECT_EQ(first.tokens_size(), 0);
      }
    }
  }
}

TEST(AnswersTest, EchoTakesATokenizer) {
  TestServer::Options options;
  options.with_tokenizer = false;
  TestServer server(options);
  v1::GenerateRequest request = GreedyRequest({1}, 1);
  request.set_echo(true);
  v1::GenerateResponse response;
  const grpc::Status status = Generate(server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("echo needs a tokenizer"));
  v1::ScoreRequest score;
  score.add_inputs()->set_text("a");
  v1::ScoreResponse scored;
  EXPECT_EQ(Score(server, score, &scored).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

// What Score says of the tokens that a greedy completion sampled is what the completion said.
TEST(AnswersTest, ScoreEqualsDecoding) {
  TestServer server;
  const std::vector<TokenId> prompt = Prompt(6, 2);
  v1::GenerateRequest request = GreedyRequest(prompt, 12);
  request.mutable_logprobs()->set_logprobs(0);
  v1::GenerateResponse generated;
  ASSERT_TRUE(Generate(server, request, &generated).ok());
  const v1::Completion& completion = generated.completions(0);

  std::vector<TokenId> whole = prompt;
  for (const TokenId id : Ids(completion.tokens())) whole.push_back(id);
  v1::ScoreRequest score = ScoreOf({{5}, whole, {9, 8}});
  score.set_request_id("mine");
  v1::ScoreResponse response;
  ASSERT_TRUE(Score(server, score, &response).ok());
  EXPECT_EQ(response.request_id(), "mine");
  ASSERT_EQ(response.scores_size(), 3);
  EXPECT_EQ(response.usage().prompt_tokens(), 1 + whole.size() + 2);
  EXPECT_EQ(response.usage().completion_tokens(), 0u);

  const v1::Score& single = response.scores(0);
  ASSERT_EQ(single.tokens_size(), 1);
  EXPECT_EQ(single.tokens(0).token_id(), 5u);
  EXPECT_FALSE(single.tokens(0).has_logprob());
  EXPECT_EQ(single.total_logprob(), 0);
  EXPECT_EQ(single.mean_nll(), 0);

  const v1::Score& scored = response.scores(1);
  EXPECT_EQ(scored.index(), 1u);
  EXPECT_EQ(Ids(scored.tokens()), whole);
  EXPECT_FALSE(scored.tokens(0).has_logprob());
  double total = 0;
  for (size_t i = 1; i < whole.size(); ++i) {
    ASSERT_TRUE(scored.tokens(i).has_logprob()) << i;
    total += scored.tokens(i).logprob();
  }
  EXPECT_EQ(scored.total_logprob(), total);
  EXPECT_EQ(scored.mean_nll(), -total / static_cast<double>(whole.size() - 1));
  for (int i = 0; i < completion.tokens_size(); ++i) {
    EXPECT_EQ(scored.tokens(static_cast<int>(prompt.size()) + i).logprob(),
              completion.tokens(i).logprob())
        << i;
  }
  EXPECT_EQ(response.scores(2).tokens_size(), 2);
}

TEST(AnswersTest, PromptLogprobsAreTheScore) {
  TestServer server;
  const std::vector<TokenId> prompt = Prompt(9, 4);
  v1::ScoreResponse score;
  ASSERT_TRUE(Score(server, ScoreOf({prompt}), &score).ok());
  for (const uint32_t top : {0u, 3u}) {
    v1::GenerateRequest request = GreedyRequest(prompt, 3);
    request.mutable_logprobs()->set_prompt_logprobs(top);
    v1::GenerateResponse response;
    ASSERT_TRUE(Generate(server, request, &response).ok());
    const Streamed streamed = ReadStream(server, request);
    ASSERT_TRUE(streamed.status.ok());
    for (const auto& tokens :
         {response.prompt_tokens(), streamed.events[0].start().prompt_token_infos()}) {
      EXPECT_EQ(Ids(tokens), prompt);
      EXPECT_FALSE(tokens[0].has_logprob());
      EXPECT_EQ(tokens[0].top_size(), 0);
      for (int i = 1; i < tokens.size(); ++i) {
        EXPECT_EQ(tokens[i].logprob(), score.scores(0).tokens(i).logprob()) << i;
        EXPECT_EQ(tokens[i].top_size(), top) << i;
      }
    }
    // The completion's own logprobs were not asked for.
    EXPECT_FALSE(response.completions(0).tokens(0).has_logprob());
    EXPECT_EQ(response.usage().cached_tokens(), 0u);
  }
  v1::GenerateResponse plain;
  ASSERT_TRUE(Generate(server, GreedyRequest(prompt, 3), &plain).ok());
  EXPECT_EQ(plain.prompt_tokens_size(), 0);
}

TEST(AnswersTest, ReportsCachedTokens) {
  TestServer server;
  const std::vector<TokenId> prompt = Prompt(30, 4);
  v1::GenerateResponse first;
  ASSERT_TRUE(Generate(server, GreedyRequest(prompt, 5), &first).ok());
  const Streamed again = ReadStream(server, GreedyRequest(prompt, 5));
  ASSERT_TRUE(again.status.ok());
  EXPECT_EQ(again.TokenIds(), Ids(first.completions(0).tokens()));
  const uint32_t cached = again.events.front().start().cached_tokens();
  EXPECT_EQ(cached, 28u);  // whole blocks of 4, and the last token is computed
  EXPECT_EQ(again.events.back().end().usage().cached_tokens(), cached);
  v1::GenerateRequest unwilling = GreedyRequest(prompt, 5);
  unwilling.set_use_prefix_cache(false);
  v1::GenerateResponse computed;
  ASSERT_TRUE(Generate(server, unwilling, &computed).ok());
  EXPECT_EQ(computed.usage().cached_tokens(), 0u);
  EXPECT_EQ(Ids(computed.completions(0).tokens()), again.TokenIds());

  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(first.usage().cached_tokens(), 0u);
  EXPECT_EQ(metrics.Sum("ddl_prompt_tokens_total", {"source=\"cached\""}), cached);
  EXPECT_EQ(metrics.Sum("ddl_prompt_tokens_total", {"source=\"computed\""}), 90 - cached);
  EXPECT_EQ(metrics.Sum("ddl_prefix_cache_hit_tokens_total"), cached);
  EXPECT_GE(metrics.Sum("ddl_prefix_cache_query_tokens_total"), 60);
  EXPECT_GT(metrics.Sum("ddl_kv_blocks", {"state=\"cached\""}), 0);
  EXPECT_EQ(metrics.Sum("ddl_kv_blocks"), 256);
  EXPECT_EQ(metrics.Sum("ddl_kv_cache_usage_ratio"), 0);
}

// The statistics are functions of the gates, which are given with them.
TEST(AnswersTest, StatisticsAreThoseOfTheGates) {
  TestServer server;
  v1::ModelInfo model;
  grpc::ClientContext context;
  ASSERT_TRUE(server.models().GetModelInfo(&context, {}, &model).ok());
  const int sublayers = static_cast<int>(2 * model.num_layers());
  const auto check = [&](const v1::DdlStats& stats, int positions) {
    ASSERT_EQ(stats.sublayers_size(), sublayers);
    for (int s = 0; s < sublayers; ++s) {
      const v1::DdlSublayerStats& sublayer = stats.sublayers(s);
      EXPECT_EQ(sublayer.layer(), static_cast<uint32_t>(s / 2));
      EXPECT_EQ(sublayer.sublayer(), s % 2 == 0 ? "attn" : "mlp");
      ASSERT_EQ(sublayer.beta_per_token_size(), positions);
      double sum = 0, squares = 0, identity = 0, reflection = 0;
      float least = 3, most = -1;
      for (const float beta : sublayer.beta_per_token()) {
        sum += beta;
        squares += static_cast<double>(beta) * beta;
        identity += beta < 0.1f;
        reflection += beta > 1.5f;
        least = std::min(least, beta);
        most = std::max(most, beta);
      }
      const double mean = sum / positions;
      EXPECT_NEAR(sublayer.beta_mean(), mean, 1e-6);
      EXPECT_NEAR(sublayer.beta_std(), std::sqrt(std::max(0.0, squares / positions - mean * mean)),
                  1e-4);
      EXPECT_EQ(sublayer.beta_min(), least);
      EXPECT_EQ(sublayer.beta_max(), most);
      EXPECT_NEAR(sublayer.fraction_identity(), identity / positions, 1e-6);
      EXPECT_NEAR(sublayer.fraction_reflection(), reflection / positions, 1e-6);
      EXPECT_GT(sublayer.update_norm_mean(), 0);
    }
  };
  v1::GenerateRequest generate = SeededRequest(Prompt(10), 6, 1);
  generate.mutable_sampling()->set_n(2);
  generate.mutable_ddl_stats()->set_per_layer_beta(true);
  generate.mutable_ddl_stats()->set_per_token_beta(true);
  generate.mutable_ddl_stats()->set_update_norms(true);
  v1::GenerateResponse generated;
  ASSERT_TRUE(Generate(server, generate, &generated).ok());
  const Streamed streamed = ReadStream(server, generate);
  // The last token is sampled, and not computed.
  for (int i = 0; i < 2; ++i) {
    check(generated.completions(i).ddl_stats(), 10 + 6 - 1);
    EXPECT_EQ(streamed.events.back().end().completions(i).ddl_stats().SerializeAsString(),
              generated.completions(i).ddl_stats().SerializeAsString());
  }

  v1::EmbedRequest embed = EmbedOf({Prompt(7), {1}, Prompt(40, 3)});
  *embed.mutable_ddl_stats() = generate.ddl_stats();
  v1::EmbedResponse embedded;
  ASSERT_TRUE(Embed(server, embed, &embedded).ok());
  check(embedded.embeddings(0).ddl_stats(), 7);
  check(embedded.embeddings(1).ddl_stats(), 1);
  check(embedded.embeddings(2).ddl_stats(), 40);

  // Only what was asked for.
  embed.mutable_ddl_stats()->Clear();
  embed.mutable_ddl_stats()->set_update_norms(true);
  ASSERT_TRUE(Embed(server, embed, &embedded).ok());
  EXPECT_EQ(embedded.embeddings(0).ddl_stats().sublayers(0).beta_max(), 0);
  EXPECT_THAT(embedded.embeddings(0).ddl_stats().sublayers(0).beta_per_token(), IsEmpty());
  EXPECT_GT(embedded.embeddings(0).ddl_stats().sublayers(0).update_norm_mean(), 0);
  embed.clear_ddl_stats();
  ASSERT_TRUE(Embed(server, embed, &embedded).ok());
  EXPECT_FALSE(embedded.embeddings(0).has_ddl_stats());
}

TEST(AnswersTest, WeightedMeanWeighsPositions) {
  TestServer server;
  v1::EmbedRequest request = EmbedOf({{1, 2, 3}});
  request.mutable_params()->set_pooling(v1::POOLING_WEIGHTED_MEAN);
  request.mutable_params()->set_normalize(false);
  v1::EmbedResponse response;
  ASSERT_TRUE(Embed(server, request, &response).ok());
  const std::vector<std::vector<float>> rows = {
      FakeModelRunner::Hidden(std::vector<TokenId>{1}),
      FakeModelRunner::Hidden(std::vector<TokenId>{1, 2}),
      FakeModelRunner::Hidden(std::vector<TokenId>{1, 2, 3})};
  for (int i = 0; i < 3; ++i) {
    EXPECT_NEAR(response.embeddings(0).vectors(0).values(i),
                (rows[0][i] + 2 * rows[1][i] + 3 * rows[2][i]) / 6, 1e-6);
  }
}

// What reaches the model of every readout.
TEST(AnswersTest, ReadoutsReachTheModel) {
  Mutex mu;
  std::vector<HiddenReadout> seen;
  TestServer::Options options;
  options.on_forward = [&](absl::Span<const SequenceChunk> chunks) {
    const MutexLock lock(mu);
    for (const SequenceChunk& chunk : chunks) {
      if (chunk.hidden != Rows::kNone) seen.push_back(chunk.readout);
    }
    return absl::OkStatus();
  };
  TestServer server(options);
  using Kind = HiddenReadout::Kind;
  struct Row {
    const char* what;
    std::function<void(v1::EmbedParams*)> change;
    Kind kind;
    std::optional<int32_t> layer;
    int32_t channel;
  };
  const Row rows[] = {
      {"default", [](auto*) {}, Kind::kFinalNorm, std::nullopt, 0},
      {"final norm", [](auto* p) { p->set_readout(v1::DDL_READOUT_FINAL_NORM); }, Kind::kFinalNorm,
       std::nullopt, 0},
      {"layer 0", [](auto* p) { p->set_layer(0); }, Kind::kFinalNorm, 0, 0},
      {"last layer", [](auto* p) { p->set_layer(-1); }, Kind::kFinalNorm, -1, 0},
      {"compressed", [](auto* p) { p->set_readout(v1::DDL_READOUT_COMPRESSED); }, Kind::kCompressed,
       std::nullopt, 0},
      {"first channel", [](auto* p) { p->set_readout(v1::DDL_READOUT_CHANNEL); }, Kind::kChannel,
       std::nullopt, 0},
      {"channel",
       [](auto* p) {
         p->set_readout(v1::DDL_READOUT_CHANNEL);
         p->set_channel(0);
       },
       Kind::kChannel, std::nullopt, 0},
      {"state", [](auto* p) { p->set_readout(v1::DDL_READOUT_STATE_FLAT); }, Kind::kStateFlat,
       std::nullopt, 0},
  };
  v1::ModelInfo model;
  grpc::ClientContext context;
  ASSERT_TRUE(server.models().GetModelInfo(&context, {}, &model).ok());
  for (const Row& row : rows) {
    {
      const MutexLock lock(mu);
      seen.clear();
    }
    v1::EmbedRequest request = EmbedOf({{1, 2}});
    row.change(request.mutable_params());
    v1::EmbedResponse response;
    ASSERT_TRUE(Embed(server, request, &response).ok()) << row.what;
    const MutexLock lock(mu);
    ASSERT_THAT(seen, SizeIs(1)) << row.what;
    EXPECT_EQ(seen[0].kind, row.kind) << row.what;
    std::optional<int32_t> layer = row.layer;
    if (layer == -1) layer = static_cast<int32_t>(model.num_layers()) - 1;
    EXPECT_EQ(seen[0].layer, layer) << row.what;
    EXPECT_EQ(seen[0].channel, row.channel) << row.what;
  }
}

// Deltas, concatenated, are the unary text, for bytes that are no characters by themselves, stop
// strings and every gathering of tokens.
TEST(AnswersTest, StreamsWhatUnaryGivesForRandomRequests) {
  TestServer server;
  uint64_t state = 2026;
  const auto random = [&state](uint64_t below) {  // an LCG: the rows are the same every time
    state = state * 6364136223846793005 + 1442695040888963407;
    return (state >> 33) % below;
  };
  int stopped = 0;
  int replaced = 0;
  for (int run = 0; run < 2000; ++run) {
    std::vector<TokenId> prompt;
    for (uint64_t i = 0; i <= random(12); ++i) {
      prompt.push_back(static_cast<TokenId>(random(kByteTokenizerVocabSize)));
    }
    v1::GenerateRequest request =
        SeededRequest(prompt, static_cast<int>(1 + random(40)), random(1 << 20));
    request.mutable_stopping()->set_ignore_eos(random(2) == 0);
    request.set_stream_interval(static_cast<uint32_t>(1 + random(5)));
    request.set_echo(random(3) == 0);
    request.mutable_sampling()->set_n(static_cast<uint32_t>(1 + random(3)));
    request.set_skip_special_tokens(random(2) == 0);
    for (uint64_t i = 0; i < random(4); ++i) {
      std::string stop(1, static_cast<char>('!' + random(90)));
      if (random(3) == 0) stop = "\xEF\xBF\xBD";  // what a broken character becomes
      if (random(3) == 0) stop += static_cast<char>('!' + random(90));
      request.mutable_stopping()->add_stop(stop);
    }
    v1::GenerateResponse unary;
    ASSERT_TRUE(Generate(server, request, &unary).ok()) << run;
    const Streamed streamed = ReadStream(server, request);
    ASSERT_TRUE(streamed.status.ok()) << run;
    for (int i = 0; i < unary.completions_size(); ++i) {
      const v1::Completion& completion = unary.completions(i);
      ASSERT_EQ(streamed.Text(i), completion.text()) << run;
      ASSERT_EQ(streamed.TokenIds(i), Ids(completion.tokens())) << run;
      // Not in the prompt's text, which may hold anything.
      const std::string own = request.echo() ? "" : completion.text();
      for (const std::string& stop : request.stopping().stop()) {
        ASSERT_EQ(own.find(stop), std::string::npos) << run << " " << stop;
      }
      stopped += completion.has_matched_stop_str();
      replaced += completion.text().find("\xEF\xBF\xBD") != std::string::npos;
    }
  }
  // The runs straddle what they are about.
  EXPECT_GT(stopped, 200);
  EXPECT_GT(replaced, 1000);
}

}  // namespace
}  // namespace ddl
