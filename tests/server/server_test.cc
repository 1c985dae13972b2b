#include "server/server.h"

#include <gmock/gmock.h>
#include <grpcpp/support/sync_stream.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/byte_tokenizer.h"
#include "tests/server/engine/engine_fixture.h"
#include "tests/server/test_server.h"

namespace ddl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(ServerTest, Generates) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest({1, 2, 3}, 5);
  request.set_request_id("mine");
  v1::GenerateResponse response;
  const grpc::Status status = Generate(server, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.request_id(), "mine");
  EXPECT_EQ(response.model(), "fake");
  EXPECT_EQ(response.model_version(), "0123456789ab");
  EXPECT_THAT(response.system_fingerprint(), HasSubstr("0123456789ab-"));
  EXPECT_THAT(response.system_fingerprint(), HasSubstr("-float32-avx2"));
  ASSERT_EQ(response.completions_size(), 1);
  const v1::Completion& completion = response.completions(0);
  EXPECT_EQ(Ids(completion.tokens()),
            ExpectedTokens({1, 2, 3}, 5, {.temperature = 0}, kByteTokenizerVocabSize));
  EXPECT_EQ(completion.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(response.usage().prompt_tokens(), 3u);
  EXPECT_EQ(response.usage().completion_tokens(), 5u);
  EXPECT_EQ(response.usage().total_tokens(), 8u);
  EXPECT_GT(response.timings().time_to_first_token().nanos(), 0);
  for (const v1::TokenInfo& token : completion.tokens()) EXPECT_FALSE(token.has_logprob());
}

TEST(ServerTest, ReturnsTheRandomSeed) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest({1, 2, 3}, 20);
  request.mutable_sampling()->set_temperature(1);
  v1::GenerateResponse first;
  ASSERT_TRUE(Generate(server, request, &first).ok());
  request.mutable_sampling()->set_seed(first.completions(0).seed());
  v1::GenerateResponse second;
  ASSERT_TRUE(Generate(server, request, &second).ok());
  EXPECT_EQ(second.completions(0).seed(), first.completions(0).seed());
  EXPECT_EQ(Ids(second.completions(0).tokens()), Ids(first.completions(0).tokens()));
  request.mutable_sampling()->clear_seed();
  v1::GenerateResponse third;
  ASSERT_TRUE(Generate(server, request, &third).ok());
  EXPECT_NE(third.completions(0).seed(), first.completions(0).seed());
  EXPECT_NE(third.request_id(), first.request_id());
}

TEST(ServerTest, GivesLogprobsWhenAsked) {
  TestServer server;
  v1::GenerateRequest request = GreedyRequest({1, 2, 3}, 2);
  request.mutable_logprobs()->set_logprobs(0);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(server, request, &response).ok());
  EXPECT_TRUE(response.completions(0).tokens(0).has_logprob());
  EXPECT_THAT(response.completions(0).tokens(0).top(), IsEmpty());
  request.mutable_logprobs()->set_logprobs(3);
  const Streamed streamed = ReadStream(server, request);
  ASSERT_TRUE(streamed.status.ok());
  EXPECT_THAT(streamed.events[1].delta().tokens(0).top(), SizeIs(3));
  EXPECT_EQ(streamed.events[1].delta().tokens(0).logprob(),
            response.completions(0).tokens(0).logprob());
}

TEST(ServerTest, StreamsWhatUnaryGives) {
  TestServer server;
  for (const int interval : {1, 2, 3, 7, 20, 1000}) {
    v1::GenerateRequest request = GreedyRequest({4, 5, 6}, 20);
    v1::GenerateResponse unary;
    ASSERT_TRUE(Generate(server, request, &unary).ok());
    request.set_stream_interval(interval);
    request.set_request_id("mine");
    const Streamed streamed = ReadStream(server, request);
    ASSERT_TRUE(streamed.status.ok()) << interval;
    // Every `interval` tokens an event; what is left at the end makes one more.
    const int deltas = (20 + interval - 1) / interval;
    EXPECT_EQ(streamed.Shape(), "S" + std::string(deltas, 'D') + "E") << interval;
    for (const auto& event : streamed.events) EXPECT_EQ(event.request_id(), "mine");
    EXPECT_EQ(streamed.events.front().start().prompt_tokens(), 3u);
    EXPECT_EQ(streamed.events.front().start().model(), "fake");
    EXPECT_EQ(streamed.events.front().start().model_version(), unary.model_version());
    EXPECT_EQ(streamed.events.front().start().system_fingerprint(), unary.system_fingerprint());
    EXPECT_EQ(streamed.Text(), unary.completions(0).text()) << interval;
    EXPECT_EQ(streamed.TokenIds(), Ids(unary.completions(0).tokens())) << interval;
    const v1::StreamEnd& end = streamed.events.back().end();
    ASSERT_EQ(end.completions_size(), 1);
    EXPECT_EQ(end.completions(0).text(), "");
    EXPECT_EQ(end.completions(0).tokens_size(), 0);
    EXPECT_EQ(end.completions(0).finish_reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(end.completions(0).cumulative_logprob(), unary.completions(0).cumulative_logprob());
    EXPECT_EQ(end.usage().completion_tokens(), 20u);
  }
}

TEST(ServerTest, StopsAtStringsAndTokens) {
  TestServer server;
  // A prompt whose completion has an ASCII letter.
  v1::GenerateRequest request;
  v1::GenerateResponse whole;
  std::string letter;
  for (int seed = 0; letter.empty(); ++seed) {
    request = GreedyRequest(Prompt(3, seed), 30);
    ASSERT_TRUE(Generate(server, request, &whole).ok());
    for (const char c : whole.completions(0).text()) {
      if (letter.empty() && c >= 'a' && c <= 'z') letter = c;
    }
  }

  request.mutable_stopping()->add_stop_token_ids(whole.completions(0).tokens(9).token_id());
  v1::GenerateResponse by_token;
  ASSERT_TRUE(Generate(server, request, &by_token).ok());
  EXPECT_EQ(by_token.completions(0).finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(by_token.completions(0).matched_token_id(), whole.completions(0).tokens(9).token_id());
  EXPECT_LE(by_token.completions(0).tokens_size(), 10);

  request.mutable_stopping()->clear_stop_token_ids();
  request.mutable_stopping()->add_stop(letter);
  v1::GenerateResponse by_string;
  ASSERT_TRUE(Generate(server, request, &by_string).ok());
  EXPECT_EQ(by_string.completions(0).finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(by_string.completions(0).matched_stop_str(), letter);
  EXPECT_EQ(by_string.completions(0).text(),
            whole.completions(0).text().substr(0, whole.completions(0).text().find(letter)));
  EXPECT_EQ(ReadStream(server, request).Text(), by_string.completions(0).text());
}

TEST(ServerTest, EndsAtTheContext) {
  TestServer server;
  const Streamed streamed = ReadStream(server, GreedyRequest(Prompt(60), 100));
  ASSERT_TRUE(streamed.status.ok());
  EXPECT_EQ(streamed.events.back().end().completions(0).finish_reason(), v1::FINISH_REASON_CONTEXT);
  EXPECT_EQ(streamed.TokenIds().size(), 4u);
}

TEST(ServerTest, Embeds) {
  TestServer server;
  v1::EmbedRequest request;
  const std::vector<std::vector<TokenId>> inputs = {{1, 2, 3}, {4}, {5, 6, 7, 8, 9}};
  for (const auto& input : inputs) {
    v1::Input* added = request.add_inputs();
    for (const TokenId id : input) added->mutable_token_ids()->add_ids(id);
  }
  request.mutable_params()->set_normalize(false);
  v1::EmbedResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(server.inference().Embed(&context, request, &response).ok());
  ASSERT_EQ(response.embeddings_size(), 3);
  EXPECT_EQ(response.dimensions(), 3u);
  EXPECT_EQ(response.usage().prompt_tokens(), 9u);
  EXPECT_EQ(response.usage().completion_tokens(), 0u);
  for (int i = 0; i < 3; ++i) {
    const v1::Embedding& embedding = response.embeddings(i);
    EXPECT_EQ(embedding.index(), static_cast<uint32_t>(i));
    EXPECT_EQ(embedding.prompt_tokens(), inputs[i].size());
    ASSERT_EQ(embedding.vectors_size(), 1);
    EXPECT_THAT(embedding.vectors(0).values(),
                ::testing::ElementsAreArray(FakeModelRunner::Hidden(inputs[i])));
  }
}

TEST(ServerTest, EmbedsInEveryEncoding) {
  TestServer server;
  v1::EmbedRequest request;
  for (const TokenId id : {1, 2, 3}) request.add_inputs()->mutable_token_ids()->add_ids(id);
  request.mutable_params()->set_pooling(v1::POOLING_NONE);
  request.mutable_params()->set_normalize(false);
  const auto embed = [&](v1::EncodingFormat format) {
    request.mutable_params()->set_encoding_format(format);
    v1::EmbedResponse response;
    grpc::ClientContext context;
    EXPECT_TRUE(server.inference().Embed(&context, request, &response).ok());
    return response.embeddings(2).vectors(0);
  };
  const v1::Vector floats = embed(v1::ENCODING_FORMAT_FLOAT);
  ASSERT_EQ(floats.values_size(), 3);
  const v1::Vector f32 = embed(v1::ENCODING_FORMAT_BYTES_F32LE);
  EXPECT_THAT(f32.values(), IsEmpty());
  EXPECT_EQ(f32.raw(), std::string(reinterpret_cast<const char*>(floats.values().data()), 12));
  const v1::Vector bf16 = embed(v1::ENCODING_FORMAT_BYTES_BF16LE);
  ASSERT_EQ(bf16.raw().size(), 6u);
  for (int i = 0; i < 3; ++i) {
    uint16_t half;
    std::memcpy(&half, bf16.raw().data() + 2 * i, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    EXPECT_NEAR(value, floats.values(i), std::abs(floats.values(i)) / 256) << i;
  }
}

TEST(ServerTest, TokenizesAndDetokenizes) {
  TestServer server;
  v1::TokenizeRequest tokenize;
  tokenize.add_texts("Hé");
  tokenize.add_texts("");
  v1::TokenizeResponse tokens;
  grpc::ClientContext context;
  ASSERT_TRUE(server.inference().Tokenize(&context, tokenize, &tokens).ok());
  ASSERT_EQ(tokens.lists_size(), 2);
  EXPECT_EQ(tokens.lists(1).tokens_size(), 0);
  ASSERT_EQ(tokens.lists(0).tokens_size(), 3);
  EXPECT_EQ(tokens.lists(0).tokens(1).id(), 0xC3u);
  EXPECT_EQ(tokens.lists(0).tokens(1).bytes(), "\xC3");
  EXPECT_EQ(tokens.lists(0).tokens(1).start(), 1u);
  EXPECT_EQ(tokens.lists(0).tokens(1).end(), 2u);

  v1::DetokenizeRequest detokenize;
  for (const v1::Token& token : tokens.lists(0).tokens()) {
    if (detokenize.sequences_size() == 0) detokenize.add_sequences();
    detokenize.mutable_sequences(0)->add_ids(token.id());
  }
  v1::DetokenizeResponse texts;
  grpc::ClientContext context2;
  ASSERT_TRUE(server.inference().Detokenize(&context2, detokenize, &texts).ok());
  EXPECT_THAT(texts.texts(), ElementsAre("Hé"));
}

TEST(ServerTest, AnswersManyCallsAtOnceAsAlone) {
  TestServer server;
  std::vector<std::thread> clients;
  for (int i = 0; i < 32; ++i) {
    clients.emplace_back([&server, i] {
      const std::vector<TokenId> prompt = Prompt(1 + i, i);
      const std::vector<TokenId> expected =
          ExpectedTokens(prompt, 20, {.temperature = 0}, kByteTokenizerVocabSize);
      if (i % 2 == 0) {
        const Streamed streamed = ReadStream(server, GreedyRequest(prompt, 20));
        EXPECT_TRUE(streamed.status.ok()) << streamed.status.error_message();
        EXPECT_EQ(streamed.TokenIds(), expected) << i;
      } else {
        v1::GenerateResponse response;
        EXPECT_TRUE(Generate(server, GreedyRequest(prompt, 20), &response).ok());
        EXPECT_EQ(Ids(response.completions(0).tokens()), expected) << i;
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

// Errors, with the details that clients read.
TEST(ServerTest, Errors) {
  TestServer server;
  struct Row {
    const char* what;
    std::function<void(v1::GenerateRequest*)> change;
    grpc::StatusCode code;
    const char* words;
    const char* field;  // of the violation; empty: none
  };
  const Row rows[] = {
      {"unknown model", [](auto* r) { r->set_model("other"); }, grpc::StatusCode::NOT_FOUND,
       "served: 'fake'", ""},
      {"temperature", [](auto* r) { r->mutable_sampling()->set_temperature(3); },
       grpc::StatusCode::INVALID_ARGUMENT, "0...2, not 3", "sampling.temperature"},
      {"too long", [](auto* r) { *r = GreedyRequest(Prompt(64), 1); },
       grpc::StatusCode::INVALID_ARGUMENT, "1...63 tokens", "prompt"},
      {"no prompt", [](auto* r) { r->clear_prompt(); }, grpc::StatusCode::INVALID_ARGUMENT,
       "text or token_ids", "prompt"},
  };
  for (const Row& row : rows) {
    v1::GenerateRequest request = GreedyRequest({1}, 1);
    row.change(&request);
    v1::GenerateResponse response;
    const Streamed streamed = ReadStream(server, request);
    EXPECT_EQ(streamed.Shape(), "") << row.what;
    for (const grpc::Status& status : {Generate(server, request, &response), streamed.status}) {
      EXPECT_EQ(status.error_code(), row.code) << row.what << ": " << status.error_message();
      EXPECT_THAT(status.error_message(), HasSubstr(row.words)) << row.what;
      const DecodedStatus details = Decode(status);
      if (*row.field == '\0') {
        EXPECT_EQ(details.bad_request.field_violations_size(), 0) << row.what;
      } else {
        ASSERT_EQ(details.bad_request.field_violations_size(), 1) << row.what;
        EXPECT_EQ(details.bad_request.field_violations(0).field(), row.field) << row.what;
        EXPECT_THAT(details.bad_request.field_violations(0).description(), HasSubstr(row.words));
      }
    }
  }
}

// Requests that are not the message they should be, as bytes.
TEST(ServerTest, RefusesBytesThatAreNoRequest) {
  TestServer server;
  struct Row {
    const char* method;
    std::string request;
    const char* field;
  };
  const Row rows[] = {
      {"InferenceService/Generate", "\x1A\x03\x0A\x01\xFF", "prompt.text"},
      {"InferenceService/GenerateStream", "\x1A\x03\x0A\x01\xFF", "prompt.text"},
      {"InferenceService/Generate", "\x2A\x06\x1A\x01\x61\x1A\x01\xC3", "stopping.stop[1]"},
      {"InferenceService/Embed", "\x1A\x03\x0A\x01\xFF", "inputs[0].text"},
      {"InferenceService/Tokenize", "\x12\x01\x61\x12\x02\xED\xA0", "texts[1]"},
      {"ModelService/GetModelInfo", "\x0A\x01\x80", "model"},
      {"InferenceService/Generate", "\x1A\x7F\x0A", ""},
      {"ModelService/ListModels", "\x0F", ""},
  };
  for (const Row& row : rows) {
    std::string response;
    const grpc::Status status = RawUnaryCall(server.channel(), std::string("/ddl.v1.") + row.method,
                                             row.request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << row.method << ": " << status.error_message();
    const DecodedStatus details = Decode(status);
    if (*row.field == '\0') {
      EXPECT_THAT(status.error_message(), HasSubstr("the request is not a ddl.v1."));
    } else {
      ASSERT_EQ(details.bad_request.field_violations_size(), 1) << row.method;
      EXPECT_EQ(details.bad_request.field_violations(0).field(), row.field);
    }
  }
}

TEST(ServerTest, ServesTokenIdsWithoutATokenizer) {
  TestServer::Options options;
  options.with_tokenizer = false;
  TestServer server(options);
  v1::GenerateRequest request = GreedyRequest({1, 2}, 3);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(server, request, &response).ok());
  EXPECT_EQ(response.completions(0).tokens_size(), 3);
  EXPECT_EQ(response.completions(0).text(), "");
  request.mutable_prompt()->set_text("hello");
  const grpc::Status status = Generate(server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(),
              HasSubstr("its folder holds none, or the server was started with --tokenizer=none. "
                        "Send token ids instead"));
}

// More tokens than can be made before a cancellation has travelled, and a server for that many.
constexpr int kLongCompletion = 20000;
TestServer::Options LongContext() {
  TestServer::Options options;
  options.max_context_length = kLongCompletion + 1;
  options.runner.kv_num_blocks = kLongCompletion;
  return options;
}

TEST(ServerTest, CancelledCallsLeaveTheEngine) {
  TestServer server(LongContext());
  server.step_gate().Close();
  grpc::ClientContext unary_context;
  std::thread unary([&] {
    v1::GenerateResponse response;
    EXPECT_EQ(server.inference()
                  .Generate(&unary_context, GreedyRequest({1}, kLongCompletion), &response)
                  .error_code(),
              grpc::StatusCode::CANCELLED);
  });
  server.step_gate().AwaitWaiter();
  unary_context.TryCancel();
  unary.join();
  server.step_gate().Open();  // or the stream does not start

  grpc::ClientContext stream_context;
  auto reader =
      server.inference().GenerateStream(&stream_context, GreedyRequest({1}, kLongCompletion));
  v1::GenerateStreamResponse event;
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_TRUE(event.has_start());
  stream_context.TryCancel();
  while (reader->Read(&event)) EXPECT_FALSE(event.has_end());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);

  server.RequestStop();
  EXPECT_TRUE(server.AwaitStopped().ok());
  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_request_finished_total", {"finish_reason=\"cancel\""}), 2);
  EXPECT_EQ(metrics.Sum("ddl_requests_total", {"code=\"CANCELLED\""}), 2);
  EXPECT_EQ(metrics.Sum("ddl_cancel_latency_seconds_count", {"reason=\"cancel\""}), 2);
  EXPECT_EQ(metrics.Sum("ddl_kv_blocks", {"state=\"used\""}), 0);
  EXPECT_EQ(metrics.Sum("ddl_requests_in_flight"), 0);
}

TEST(ServerTest, DeadlinesEndCalls) {
  TestServer server(LongContext());
  server.step_gate().Close();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  v1::GenerateResponse response;
  EXPECT_EQ(server.inference()
                .Generate(&context, GreedyRequest({1}, kLongCompletion), &response)
                .error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  server.step_gate().Open();
  server.RequestStop();
  EXPECT_TRUE(server.AwaitStopped().ok());
  // Whichever of the client's cancellation and the server's own clock came first.
  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_request_finished_total", {"finish_reason=\"deadline\""}), 1);
  EXPECT_EQ(metrics.Sum("ddl_requests_total", {"code=\"DEADLINE_EXCEEDED\""}), 1);
}

TEST(ServerTest, RefusesWhatDoesNotFitTheQueue) {
  TestServer::Options options;
  options.config.engine.max_running_sequences = 1;
  options.config.engine.max_waiting_requests = 1;
  TestServer server(options);
  server.step_gate().Close();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> readers;
  for (int i = 0; i < 2; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(
        server.inference().GenerateStream(contexts.back().get(), GreedyRequest({1}, 5)));
    server.AwaitRequests(i + 1);
  }
  v1::GenerateResponse response;
  const grpc::Status status = Generate(server, GreedyRequest({1}, 5), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const DecodedStatus details = Decode(status);
  EXPECT_EQ(details.reason, "QUEUE_FULL");
  EXPECT_EQ(details.domain, "ddl");
  EXPECT_GT(details.retry_seconds, 0);
  EXPECT_EQ(server.metrics().Sum("ddl_admission_rejections_total", {"reason=\"queue_full\""}), 1);
  server.step_gate().Open();
  v1::GenerateStreamResponse event;
  for (auto& reader : readers) {
    while (reader->Read(&event)) continue;
    EXPECT_TRUE(reader->Finish().ok());
  }
}

TEST(ServerTest, RefusesMoreTokensThanMayWait) {
  TestServer::Options options;
  options.config.engine.max_running_sequences = 1;
  options.config.engine.max_waiting_tokens = 20;
  TestServer server(options);
  server.step_gate().Close();
  std::vector<std::thread> clients;
  for (int i = 0; i < 2; ++i) {
    clients.emplace_back([&] {
      v1::GenerateResponse response;
      EXPECT_TRUE(Generate(server, GreedyRequest(Prompt(15), 2), &response).ok());
    });
    server.AwaitRequests(i + 1);
    server.step_gate().AwaitWaiter();  // the first runs, the second waits
  }
  v1::GenerateResponse response;
  const grpc::Status status = Generate(server, GreedyRequest(Prompt(6), 2), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Decode(status).reason, "TOKENS_FULL");
  EXPECT_GT(Decode(status).retry_seconds, 0);
  EXPECT_EQ(server.metrics().Sum("ddl_admission_rejections_total", {"reason=\"tokens_full\""}), 1);
  server.step_gate().Open();
  for (std::thread& client : clients) client.join();
}

TEST(ServerTest, RefusesWhatCanNeverFit) {
  TestServer::Options options;
  options.runner.kv_num_blocks = 4;  // 16 tokens
  TestServer server(options);
  v1::GenerateResponse generated;
  EXPECT_TRUE(Generate(server, GreedyRequest(Prompt(10), 7), &generated).ok());
  v1::EmbedRequest embed;
  for (const TokenId id : Prompt(17))
    embed.mutable_inputs()->Add()->mutable_token_ids()->add_ids(id);
  v1::EmbedRequest long_embed;
  v1::Input* input = long_embed.add_inputs();
  for (const TokenId id : Prompt(17)) input->mutable_token_ids()->add_ids(id);
  v1::ScoreRequest score;
  *score.add_inputs() = *input;
  v1::EmbedResponse embedded;
  v1::ScoreResponse scored;
  EXPECT_TRUE(Embed(server, embed, &embedded).ok());  // 17 inputs of 1 token
  for (const grpc::Status& status :
       {Generate(server, GreedyRequest(Prompt(10), 8), &generated),
        Embed(server, long_embed, &embedded), Score(server, score, &scored)}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    const DecodedStatus details = Decode(status);
    EXPECT_EQ(details.reason, "TOO_LARGE");
    EXPECT_EQ(details.metadata.at("needed_tokens"), "17");
    EXPECT_EQ(details.metadata.at("available_tokens"), "16");
    EXPECT_THAT(status.error_message(), HasSubstr("17"));
    EXPECT_EQ(details.retry_seconds, -1);
  }
  EXPECT_EQ(server.metrics().Sum("ddl_admission_rejections_total", {"reason=\"too_large\""}), 3);
}

TEST(ServerTest, EndsWhatWaitsLongerThanItWants) {
  TestServer::Options options;
  options.config.engine.max_running_sequences = 1;
  options.on_forward = [](absl::Span<const SequenceChunk>) {
    absl::SleepFor(absl::Milliseconds(2));
    return absl::OkStatus();
  };
  TestServer server(options);
  std::thread running([&] {
    v1::GenerateResponse response;
    EXPECT_TRUE(Generate(server, GreedyRequest({1}, 60), &response).ok());
  });
  server.AwaitRequests(1);
  v1::GenerateRequest request = GreedyRequest({2}, 60);
  request.mutable_queue_timeout()->set_nanos(1'000'000);
  v1::GenerateResponse response;
  const grpc::Status status = Generate(server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_EQ(Decode(status).reason, "QUEUE_TIMEOUT");
  EXPECT_GT(Decode(status).retry_seconds, 0);
  running.join();
}

// Its turn would come after its deadline, at the rate at which those before it start.
TEST(ServerTest, RefusesWhatWouldExpireInTheQueue) {
  TestServer::Options options;
  options.config.engine.max_running_sequences = 1;
  options.on_forward = [](absl::Span<const SequenceChunk>) {
    absl::SleepFor(absl::Milliseconds(10));
    return absl::OkStatus();
  };
  TestServer server(options);
  std::vector<std::thread> clients;
  for (int i = 0; i < 16; ++i) {
    clients.emplace_back([&server] {
      v1::GenerateResponse response;
      EXPECT_TRUE(Generate(server, GreedyRequest({1}, 20), &response).ok());
    });
  }
  server.AwaitMetrics(
      [](const ScrapedMetrics& metrics) { return metrics.Sum("ddl_request_finished_total") >= 2; });
  // A dozen wait for 200 ms each.
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(700));
  v1::GenerateResponse response;
  const grpc::Status status =
      server.inference().Generate(&context, GreedyRequest({1}, 1), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_EQ(Decode(status).reason, "DEADLINE_INFEASIBLE");
  EXPECT_GT(Decode(status).retry_seconds, 0.1);
  EXPECT_EQ(
      server.metrics().Sum("ddl_admission_rejections_total", {"reason=\"deadline_infeasible\""}),
      1);
  for (std::thread& client : clients) client.join();
  // An idle server tries, whatever the deadline.
  grpc::ClientContext idle;
  idle.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_EQ(server.inference().Generate(&idle, GreedyRequest({1}, 60), &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST(ServerTest, AFailedStepFailsItsCallsOnly) {
  std::atomic<bool> fail = false;
  TestServer::Options options;
  options.on_forward = [&](absl::Span<const SequenceChunk>) {
    return fail ? absl::InternalError("the device is on fire") : absl::OkStatus();
  };
  options.is_not_finite = [](const SequenceChunk& chunk) { return chunk.tokens[0] == 13; };
  TestServer server(options);
  fail = true;
  const Streamed streamed = ReadStream(server, GreedyRequest({1}, 5));
  EXPECT_EQ(streamed.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(streamed.Shape(), ::testing::Not(HasSubstr("E")));
  fail = false;
  EXPECT_TRUE(ReadStream(server, GreedyRequest({1}, 5)).status.ok());
  EXPECT_EQ(ReadStream(server, GreedyRequest({13}, 5)).status.error_code(),
            grpc::StatusCode::INTERNAL);
  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_request_finished_total", {"finish_reason=\"error\""}), 2);
  EXPECT_EQ(metrics.Sum("ddl_nonfinite_logits_total"), 1);
}

TEST(ServerTest, ReportsModelsAndServerInfo) {
  TestServer server;
  v1::ListModelsResponse models;
  grpc::ClientContext context;
  ASSERT_TRUE(server.models().ListModels(&context, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  const v1::ModelInfo& model = models.models(0);
  EXPECT_EQ(model.name(), "fake");
  EXPECT_EQ(model.state(), v1::MODEL_STATE_READY);
  EXPECT_EQ(model.variant(), "ccec");
  EXPECT_EQ(model.weights_sha256(), "0123456789abcdef");
  EXPECT_EQ(model.version(), "0123456789ab");
  EXPECT_EQ(model.vocab_size(), 260u);
  EXPECT_EQ(model.max_context_length(), 64u);
  EXPECT_EQ(model.dtype(), "float32");
  EXPECT_EQ(model.instruction_set(), "avx2");
  EXPECT_THAT(model.eos_token_ids(), ElementsAre(256));
  EXPECT_EQ(model.eos_source(), "vocab.json and merges.txt");
  EXPECT_EQ(model.tokenizer(), "vocab.json and merges.txt");
  EXPECT_THAT(model.tasks(), ElementsAre("generate", "embed", "score"));
  EXPECT_THAT(model.supported_pooling(), SizeIs(5));
  EXPECT_EQ(model.determinism(), "batch_invariant");

  v1::ModelInfo same;
  grpc::ClientContext context2;
  ASSERT_TRUE(server.models().GetModelInfo(&context2, {}, &same).ok());
  EXPECT_EQ(same.SerializeAsString(), model.SerializeAsString());
  v1::GetModelInfoRequest other;
  other.set_model("other");
  grpc::ClientContext context3;
  EXPECT_EQ(server.models().GetModelInfo(&context3, other, &same).error_code(),
            grpc::StatusCode::NOT_FOUND);

  v1::ServerInfo info;
  grpc::ClientContext context4;
  ASSERT_TRUE(server.models().GetServerInfo(&context4, {}, &info).ok());
  EXPECT_TRUE(info.ready());
  EXPECT_FALSE(info.draining());
  EXPECT_EQ(info.max_running(), 8u);
  EXPECT_EQ(info.max_waiting(), 256u);
  EXPECT_EQ(info.kv_tokens_capacity(), 1024u);
  EXPECT_EQ(info.max_batch_tokens(), 64u);
  EXPECT_EQ(info.max_client_batch_size(), 512u);
  EXPECT_THAT(info.libtorch_version(), HasSubstr("2."));
}

TEST(ServerTest, HasHealthAndReflection) {
  TestServer server;
  for (const char* service : {"", "ddl.v1.InferenceService", "ddl.v1.ModelService"}) {
    EXPECT_EQ(HealthCheck(server.channel(), service), "SERVING") << service;
  }
  EXPECT_EQ(HealthCheck(server.channel(), "other"), "NOT_FOUND");

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
          server.channel().get(),
          grpc::internal::RpcMethod(
              "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              grpc::internal::RpcMethod::BIDI_STREAMING, server.channel()),
          &context));
  stream->Write(Bytes(std::string("\x3A\x00", 2)));  // list_services: ""
  grpc::ByteBuffer services;
  ASSERT_TRUE(stream->Read(&services));
  for (const char* service : {"ddl.v1.InferenceService", "ddl.v1.ModelService",
                              "grpc.health.v1.Health", "grpc.reflection.v1alpha"}) {
    EXPECT_THAT(Text(services), HasSubstr(service));
  }
  stream->Write(
      Bytes("\x1A\x0B"  // file_by_filename
            "google/rpc/"));
  stream->WritesDone();
  grpc::ByteBuffer answer;
  while (stream->Read(&answer)) continue;
  EXPECT_TRUE(stream->Finish().ok());
}

// The numbers of the metrics page are what a client has sent and received.
TEST(ServerTest, MetricsEqualWhatWasSent) {
  TestServer server;
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(ReadStream(server, GreedyRequest(Prompt(10 + i, i), 5)).status.ok());
  }
  v1::GenerateResponse response;
  EXPECT_TRUE(Generate(server, GreedyRequest({1, 2, 3, 4}, 7), &response).ok());
  v1::GenerateRequest bad = GreedyRequest({1}, 1);
  bad.mutable_sampling()->set_top_p(0);
  EXPECT_FALSE(Generate(server, bad, &response).ok());
  bad.set_model("other");
  EXPECT_FALSE(Generate(server, bad, &response).ok());
  v1::EmbedRequest embed;
  for (int i = 0; i < 4; ++i) embed.add_inputs()->set_text("abcde");
  v1::EmbedResponse embedded;
  grpc::ClientContext context;
  EXPECT_TRUE(server.inference().Embed(&context, embed, &embedded).ok());
  v1::ScoreRequest score;
  for (int i = 0; i < 2; ++i) score.add_inputs()->set_text("abc");
  v1::ScoreResponse scored;
  EXPECT_TRUE(Score(server, score, &scored).ok());

  const ScrapedMetrics metrics = server.metrics();
  const std::string fake = "model=\"fake\"";
  const std::string generate = "task=\"generate\"";
  const std::string embeds = "task=\"embed\"";
  struct Row {
    const char* name;
    std::vector<std::string> labels;
    double expected;
  };
  const Row rows[] = {
      {"ddl_requests_total", {}, 8},
      {"ddl_requests_total", {"method=\"Score\"", "code=\"OK\"", fake}, 1},
      {"ddl_requests_total", {"method=\"GenerateStream\"", "code=\"OK\"", fake}, 3},
      {"ddl_requests_total", {"method=\"Generate\"", "code=\"OK\"", fake}, 1},
      {"ddl_requests_total", {"method=\"Generate\"", "code=\"INVALID_ARGUMENT\"", fake}, 1},
      {"ddl_requests_total", {"method=\"Generate\"", "code=\"NOT_FOUND\"", "model=\"unknown\""}, 1},
      {"ddl_requests_total", {"method=\"Embed\"", "code=\"OK\"", fake}, 1},
      {"ddl_request_duration_seconds_count", {}, 8},
      {"ddl_requests_in_flight", {}, 0},
      {"ddl_request_finished_total", {generate, "finish_reason=\"length\"", fake}, 4},
      {"ddl_request_finished_total", {embeds, "finish_reason=\"stop\"", fake}, 1},
      {"ddl_request_finished_total", {"task=\"score\"", "finish_reason=\"stop\"", fake}, 1},
      {"ddl_request_finished_total", {}, 6},
      {"ddl_prompt_tokens_total", {generate, "source=\"computed\""}, 10 + 11 + 12 + 4},
      {"ddl_prompt_tokens_total", {embeds}, 20},
      {"ddl_prompt_tokens_total", {"task=\"score\""}, 6},
      {"ddl_prompt_tokens_total", {"source=\"cached\""}, 0},
      {"ddl_generated_tokens_total", {}, 3 * 5 + 7},
      {"ddl_wasted_tokens_total", {}, 0},
      {"ddl_time_to_first_token_seconds_count", {}, 4},
      {"ddl_inter_token_latency_seconds_count", {}, 3 * 4 + 6},
      {"ddl_request_queue_seconds_count", {generate}, 4},
      {"ddl_request_prefill_seconds_count", {embeds}, 1},
      {"ddl_request_decode_seconds_count", {generate}, 4},
      {"ddl_request_prompt_tokens_sum", {generate}, 10 + 11 + 12 + 4},
      {"ddl_request_generated_tokens_sum", {generate}, 3 * 5 + 7},
      {"ddl_embed_inputs_per_request_sum", {}, 4},
      {"ddl_embed_inputs_per_request_count", {}, 1},
      // A prompt's first token comes of the step that computes the prompt.
      {"ddl_step_tokens_sum", {}, 10 + 11 + 12 + 4 + 20 + 6 + 3 * 4 + 6},
      {"ddl_requests_running", {}, 0},
      {"ddl_requests_waiting", {}, 0},
      {"ddl_waiting_tokens", {}, 0},
      {"ddl_kv_blocks", {"state=\"used\""}, 0},
      {"ddl_kv_blocks", {}, 256},  // free, or cached
      {"ddl_sequences_paused", {}, 0},
      {"ddl_stream_stalls_total", {}, 0},
      {"ddl_nonfinite_logits_total", {}, 0},
      {"ddl_kv_cache_usage_ratio", {}, 0},
      {"ddl_preemptions_total", {}, 0},
      {"ddl_admission_rejections_total", {}, 0},
      {"ddl_server_ready", {}, 1},
      {"ddl_server_draining", {}, 0},
      {"ddl_model_info",
       {"variant=\"ccec\"", "dtype=\"float32\"", "device=\"cpu\"", "instruction_set=\"avx2\"",
        fake},
       1},
      {"ddl_build_info", {}, 1},
  };
  for (const Row& row : rows) {
    std::string what = row.name;
    for (const std::string& label : row.labels) what += " " + label;
    EXPECT_EQ(metrics.Sum(row.name, row.labels), row.expected) << what;
    EXPECT_GE(metrics.Count(row.name, row.labels), 1) << what;
  }
  EXPECT_EQ(metrics.Count("ddl_model_load_duration_seconds"), 3);
  EXPECT_GT(metrics.Sum("ddl_engine_last_step_timestamp_seconds"), 1e9);
  EXPECT_GT(metrics.Sum("process_resident_memory_bytes"), 1e6);
  EXPECT_GT(metrics.Sum("process_open_fds"), 3);
  EXPECT_GT(metrics.Sum("process_start_time_seconds"), 1e9);
}

TEST(ServerTest, KnowsItsCacheBeforeAnyoneIsServed) {
  TestServer server;
  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_kv_blocks", {"state=\"free\""}), 256);
  EXPECT_EQ(metrics.Sum("ddl_kv_blocks"), 256);
}

// Every metric there is, by type and labels beside `model`, from the start.
TEST(ServerTest, HasEveryMetric) {
  TestServer server;
  v1::ServerInfo info;
  grpc::ClientContext context;
  ASSERT_TRUE(server.models().GetServerInfo(&context, {}, &info).ok());
  const ScrapedMetrics metrics = server.metrics();
  const std::vector<std::string> tasks = {"task=\"generate\"", "task=\"embed\"", "task=\"score\""};
  const std::vector<std::string> phases = {"phase=\"prefill\"", "phase=\"decode\"",
                                           "phase=\"mixed\""};
  const std::vector<std::string> sublayers = {"layer=\"0\",model=\"fake\",sublayer=\"attn\"",
                                              "layer=\"0\",model=\"fake\",sublayer=\"mlp\""};
  struct Row {
    const char* name;
    const char* type;
    std::vector<std::string> labels;  // each of a series that must be there
  };
  const Row rows[] = {
      {"ddl_requests_total", "counter", {"code=\"OK\",method=\"Score\""}},
      {"ddl_requests_in_flight", "gauge", {"method=\"GenerateStream\""}},
      {"ddl_request_finished_total",
       "counter",
       {"finish_reason=\"stop\"", "finish_reason=\"eos\"", "finish_reason=\"length\"",
        "finish_reason=\"context\"", "finish_reason=\"cancel\"", "finish_reason=\"deadline\"",
        "finish_reason=\"slow_reader\"", "finish_reason=\"error\"", "task=\"generate\"",
        "task=\"embed\"", "task=\"score\""}},
      {"ddl_admission_rejections_total",
       "counter",
       {"reason=\"queue_full\"", "reason=\"tokens_full\"", "reason=\"deadline_infeasible\"",
        "reason=\"too_large\"", "reason=\"draining\"", "reason=\"loading\"",
        "reason=\"rate_limited\""}},
      {"ddl_connections", "gauge", {""}},
      {"ddl_connections_refused_total", "counter", {"reason=\"too_many\"", "reason=\"too_fast\""}},
      {"ddl_connections_delayed_total", "counter", {""}},
      {"ddl_api_keys_reloads_total", "counter", {"result=\"ok\"", "result=\"failed\""}},
      {"ddl_requests_running", "gauge", tasks},
      {"ddl_requests_waiting", "gauge", tasks},
      {"ddl_waiting_tokens", "gauge", {""}},
      {"ddl_sequences_paused", "gauge", {"reason=\"slow_reader\"", "reason=\"preempted\""}},
      {"ddl_prompt_tokens_total", "counter", {"source=\"computed\"", "source=\"cached\""}},
      {"ddl_generated_tokens_total", "counter", {""}},
      {"ddl_wasted_tokens_total",
       "counter",
       {"reason=\"cancel\"", "reason=\"deadline\"", "reason=\"preempt_recompute\""}},
      {"ddl_time_to_first_token_seconds", "histogram", {"le=\"0.001\"", "le=\"300\""}},
      {"ddl_inter_token_latency_seconds", "histogram", {"le=\"0.0001\"", "le=\"2.5\""}},
      {"ddl_request_duration_seconds", "histogram", {"method=\"Embed\""}},
      {"ddl_request_queue_seconds", "histogram", tasks},
      {"ddl_request_prefill_seconds", "histogram", tasks},
      {"ddl_request_decode_seconds", "histogram", tasks},
      {"ddl_cancel_latency_seconds", "histogram", {"reason=\"cancel\"", "reason=\"deadline\""}},
      {"ddl_request_prompt_tokens", "histogram", {"le=\"1\"", "le=\"50\"", "le=\"64\""}},
      {"ddl_request_generated_tokens", "histogram", tasks},
      {"ddl_embed_inputs_per_request", "histogram", {"le=\"1\"", "le=\"1024\""}},
      {"ddl_step_duration_seconds", "histogram", phases},
      {"ddl_step_tokens", "histogram", phases},
      {"ddl_step_batch_size", "histogram", phases},
      {"ddl_scheduler_duration_seconds", "histogram", {""}},
      {"ddl_model_duration_seconds", "histogram", {""}},
      {"ddl_kv_cache_usage_ratio", "gauge", {""}},
      {"ddl_kv_blocks", "gauge", {"state=\"free\"", "state=\"used\"", "state=\"cached\""}},
      {"ddl_prefix_cache_query_tokens_total", "counter", {""}},
      {"ddl_prefix_cache_hit_tokens_total", "counter", {""}},
      {"ddl_preemptions_total", "counter", {""}},
      {"ddl_stream_stalls_total", "counter", {""}},
      {"ddl_nonfinite_logits_total", "counter", {""}},
      {"ddl_model_info", "gauge", {"variant=\"ccec\",weights_sha256=\"0123456789abcdef\""}},
      {"ddl_build_info", "gauge", {"cuda=", "grpc=", "libtorch=", "version="}},
      {"ddl_model_load_duration_seconds",
       "gauge",
       {"phase=\"read\"", "phase=\"pack\"", "phase=\"warmup\""}},
      {"ddl_step_timeouts_total", "counter", {"model=\"fake\""}},
      {"ddl_server_ready", "gauge", {""}},
      {"ddl_server_draining", "gauge", {""}},
      {"ddl_device_memory_bytes",
       "gauge",
       {"kind=\"weights\"", "kind=\"kv\"", "kind=\"activations\""}},
      {"ddl_engine_last_step_timestamp_seconds", "gauge", {""}},
      {"ddl_beta_gate", "histogram", sublayers},
      {"ddl_beta_gate", "histogram", {"le=\"0.01\"", "le=\"1.99\"", "le=\"2\""}},
      {"ddl_state_update_ratio", "histogram", sublayers},
      {"process_cpu_seconds_total", "counter", {""}},
      {"process_resident_memory_bytes", "gauge", {""}},
  };
  for (const Row& row : rows) {
    EXPECT_THAT(metrics.text(),
                HasSubstr(std::string("# TYPE ") + row.name + " " + row.type + "\n"));
    const bool histogram = std::string(row.type) == "histogram";
    for (const std::string& labels : row.labels) {
      EXPECT_GE(metrics.Count(std::string(row.name) + (histogram ? "_bucket" : ""), {labels}), 1)
          << row.name << " " << labels;
    }
  }
}

// The first step is always sampled.
TEST(ServerTest, SamplesGates) {
  for (const bool sampled : {true, false}) {
    TestServer::Options options;
    options.config.engine.gate_sample_interval =
        sampled ? absl::Seconds(1) : absl::InfiniteDuration();
    TestServer server(options);
    EXPECT_TRUE(ReadStream(server, GreedyRequest({1, 2, 3}, 5)).status.ok());
    const ScrapedMetrics metrics = server.metrics();
    for (const char* name : {"ddl_beta_gate_count", "ddl_state_update_ratio_count"}) {
      for (const char* sublayer : {"sublayer=\"attn\"", "sublayer=\"mlp\""}) {
        if (sampled) {
          EXPECT_GT(metrics.Sum(name, {sublayer}), 0) << name << " " << sublayer;
        } else {
          EXPECT_EQ(metrics.Sum(name, {sublayer}), 0) << name << " " << sublayer;
        }
      }
    }
  }
}

TEST(ServerTest, RefusesCallsWhileLoading) {
  Gate gate;
  gate.Close();
  TestServer::Options options;
  options.wait_until_ready = false;
  options.on_load = [&](const std::string&) {
    gate.Pass();
    return absl::OkStatus();
  };
  TestServer server(options);
  gate.AwaitWaiter();
  for (const char* service : {"", "ddl.v1.InferenceService", "ddl.v1.ModelService"}) {
    EXPECT_EQ(HealthCheck(server.channel(), service), "NOT_SERVING") << service;
  }
  const Streamed streamed = ReadStream(server, GreedyRequest({1}, 1));
  EXPECT_EQ(streamed.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Decode(streamed.status).reason, "LOADING");
  EXPECT_GT(Decode(streamed.status).retry_seconds, 0);
  v1::TokenizeResponse tokens;
  grpc::ClientContext context;
  EXPECT_EQ(server.inference().Tokenize(&context, {}, &tokens).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  v1::ListModelsResponse models;
  grpc::ClientContext context2;
  ASSERT_TRUE(server.models().ListModels(&context2, {}, &models).ok());
  EXPECT_EQ(models.models(0).state(), v1::MODEL_STATE_LOADING);
  v1::ServerInfo info;
  grpc::ClientContext context3;
  ASSERT_TRUE(server.models().GetServerInfo(&context3, {}, &info).ok());
  EXPECT_FALSE(info.ready());
  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_server_ready"), 0);
  EXPECT_EQ(metrics.Sum("ddl_admission_rejections_total", {"reason=\"loading\""}), 2);
  HealthWatch watch(server.channel(), "ddl.v1.InferenceService");
  EXPECT_EQ(watch.Next(), "NOT_SERVING");
  gate.Open();
  EXPECT_EQ(watch.Next(), "SERVING");
  EXPECT_TRUE(ReadStream(server, GreedyRequest({1}, 1)).status.ok());
}

TEST(ServerTest, StopsWhileLoading) {
  Gate gate;
  gate.Close();
  TestServer::Options options;
  options.wait_until_ready = false;
  options.on_load = [&](const std::string&) {
    gate.Pass();
    return absl::OkStatus();
  };
  TestServer server(options);
  gate.AwaitWaiter();
  server.RequestStop();
  EXPECT_TRUE(server.AwaitStopped().ok());  // while the loader is still at work
  gate.Open();
}

TEST(ServerTest, AModelThatCannotBeLoadedEndsIt) {
  TestServer::Options options;
  options.wait_until_ready = false;
  options.on_load = [](const std::string&) {
    return absl::NotFoundError("/nowhere/config.json is missing");
  };
  TestServer server(options);
  EXPECT_EQ(server.AwaitStopped(), absl::NotFoundError("/nowhere/config.json is missing"));
}

TEST(ServerTest, AFailedWarmUpEndsIt) {
  TestServer::Options options;
  options.wait_until_ready = false;
  options.on_forward = [](absl::Span<const SequenceChunk>) {
    return absl::InternalError("out of memory");
  };
  TestServer server(options);
  EXPECT_THAT(std::string(server.AwaitStopped().message()), HasSubstr("out of memory"));
}

// Running calls fail, health says so, and the process gets a reason to end with.
TEST(ServerTest, ALostDeviceEndsIt) {
  std::atomic<bool> lost = false;
  TestServer::Options options;
  options.on_forward = [&](absl::Span<const SequenceChunk>) {
    return lost ? absl::UnavailableError("cuda:0 failed and is lost") : absl::OkStatus();
  };
  TestServer server(options);
  EXPECT_TRUE(ReadStream(server, GreedyRequest({1}, 1)).status.ok());
  HealthWatch watch(server.channel(), "ddl.v1.InferenceService");
  EXPECT_EQ(watch.Next(), "SERVING");
  lost = true;
  const Streamed streamed = ReadStream(server, GreedyRequest({1}, 1));
  EXPECT_EQ(streamed.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(streamed.status.error_message(), HasSubstr("cuda:0 failed and is lost"));
  EXPECT_EQ(watch.Next(), "NOT_SERVING");
  EXPECT_EQ(server.AwaitStopped(), absl::UnavailableError("cuda:0 failed and is lost"));
}

TEST(ServerTest, RefusesAPortInUse) {
  Server first(TestServer::Options().config, nullptr);
  ASSERT_TRUE(first.Listen().ok());
  ServerConfig config = TestServer::Options().config;
  config.grpc_address = "127.0.0.1:" + std::to_string(first.grpc_port());
  Server second(config, nullptr);
  EXPECT_THAT(std::string(second.Listen().message()),
              HasSubstr("cannot listen on --grpc_address=" + config.grpc_address));
  config = TestServer::Options().config;
  config.metrics_address = "127.0.0.1:" + std::to_string(first.metrics_port());
  Server third(config, nullptr);
  EXPECT_THAT(std::string(third.Listen().message()),
              HasSubstr("cannot listen on --metrics_address=" + config.metrics_address));
}

// A stream that has been admitted and whose next step waits at the server's gate.
class HeldStream {
 public:
  explicit HeldStream(TestServer* server) {
    server->step_gate().Close();
    reader_ = server->inference().GenerateStream(&context_, GreedyRequest({1}, 20));
    EXPECT_TRUE(reader_->Read(&event_));
    server->step_gate().AwaitWaiter();
  }
  // Reads to the end.
  grpc::Status Finish() {
    while (reader_->Read(&event_)) continue;
    return reader_->Finish();
  }
  bool got_end() const { return event_.has_end(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> reader_;
  v1::GenerateStreamResponse event_;
};

// The machine's clock, with what a test adds to it.
class MovedClock {
 public:
  std::function<absl::Time()> now() {
    return [this] { return absl::Now() + absl::Seconds(seconds_.load()); };
  }
  void Advance(int seconds) { seconds_ += seconds; }

 private:
  std::atomic<int> seconds_ = 0;
};

bool IsReady(TestServer& server) {
  v1::ServerInfo info;
  grpc::ClientContext context;
  EXPECT_TRUE(server.models().GetServerInfo(&context, {}, &info).ok());
  return info.ready();
}

TEST(ServerTest, IsNotReadyWhileAStepDoesNotComeBack) {
  MovedClock clock;
  TestServer::Options options;
  options.config.step_timeout = absl::Seconds(60);
  options.now = clock.now();
  TestServer server(options);
  HealthWatch watch(server.channel(), "");
  EXPECT_EQ(watch.Next(), "SERVING");
  EXPECT_EQ(server.metrics().Sum("ddl_step_timeouts_total", {"model=\"fake\""}), 0);
  for (int times = 1; times <= 2; ++times) {
    HeldStream stream(&server);
    EXPECT_THAT(server.HttpPage("/readyz"), HasSubstr(" 200 "));
    clock.Advance(70);
    EXPECT_EQ(watch.Next(), "NOT_SERVING");
    EXPECT_EQ(HealthCheck(server.channel(), "ddl.v1.InferenceService"), "NOT_SERVING");
    EXPECT_THAT(server.HttpPage("/readyz"), HasSubstr("stalled"));
    EXPECT_THAT(server.HttpPage("/livez"), HasSubstr(" 200 "));  // it may come back
    EXPECT_FALSE(IsReady(server));
    EXPECT_EQ(server.metrics().Sum("ddl_server_ready"), 0);
    EXPECT_EQ(server.metrics().Sum("ddl_step_timeouts_total"), times);
    clock.Advance(60);
    const std::string hopeless = server.HttpPage("/livez");
    EXPECT_THAT(hopeless, HasSubstr(" 503 "));
    EXPECT_THAT(hopeless, HasSubstr("stalled"));
    EXPECT_THAT(server.HttpPage("/readyz"), HasSubstr(" 503 "));

    server.step_gate().Open();
    EXPECT_EQ(watch.Next(), "SERVING");
    EXPECT_TRUE(stream.Finish().ok());  // nothing was lost
    EXPECT_TRUE(stream.got_end());
    EXPECT_THAT(server.HttpPage("/livez"), HasSubstr(" 200 "));
    EXPECT_THAT(server.HttpPage("/readyz"), HasSubstr(" 200 "));
    EXPECT_TRUE(IsReady(server));
    EXPECT_EQ(server.metrics().Sum("ddl_server_ready"), 1);
    EXPECT_EQ(server.metrics().Sum("ddl_step_timeouts_total"), times);
  }
}

// The first steps of a model, in which a library may prepare a great deal, are nobody's calls.
TEST(ServerTest, AWarmUpMayTakeAnyTime) {
  MovedClock clock;
  TestServer::Options options;
  options.config.step_timeout = absl::Seconds(60);
  options.wait_until_ready = false;
  options.now = clock.now();
  options.on_forward = [&](absl::Span<const SequenceChunk>) {
    clock.Advance(1000);
    return absl::OkStatus();
  };
  TestServer server(options);
  EXPECT_THAT(server.HttpPage("/livez"), HasSubstr(" 200 "));
  server.AwaitReady();
  EXPECT_EQ(server.metrics().Sum("ddl_step_timeouts_total"), 0);
}

TEST(ServerTest, AStalledServerStillDrains) {
  MovedClock clock;
  TestServer::Options options;
  options.now = clock.now();
  TestServer server(options);
  HealthWatch watch(server.channel(), "");
  EXPECT_EQ(watch.Next(), "SERVING");
  HeldStream stream(&server);
  clock.Advance(200);
  EXPECT_EQ(watch.Next(), "NOT_SERVING");
  server.RequestStop();
  while (server.metrics().Sum("ddl_server_draining") == 0) std::this_thread::yield();
  EXPECT_THAT(server.HttpPage("/readyz"), HasSubstr("draining"));
  EXPECT_THAT(server.HttpPage("/livez"), HasSubstr("stalled"));
  server.step_gate().Open();
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_TRUE(server.AwaitStopped().ok());
}

// The stop waits for a step that does not come back, until the last resort, which would end the
// process, lets it go on here.
TEST(ServerTest, ReportsTheStepThatBlocksAStop) {
  struct Row {
    const char* name;
    int stops;
    absl::Duration drain_timeout;
  };
  const Row rows[] = {
      {"after the drain's time", 1, absl::ZeroDuration()},
      {"at once by a second signal", 2, absl::Hours(1)},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    MovedClock clock;
    std::promise<std::string> stuck;
    TestServer::Options options;
    options.now = clock.now();
    options.config.drain_timeout = row.drain_timeout;
    options.last_resort = {.grace = absl::Milliseconds(50),
                           .end = [&stuck](const std::string& what) { stuck.set_value(what); }};
    TestServer server(options);
    HeldStream stream(&server);
    clock.Advance(30);
    for (int i = 0; i < row.stops; ++i) server.RequestStop();
    const std::string what = stuck.get_future().get();
    EXPECT_THAT(what, HasSubstr("model=fake"));
    EXPECT_THAT(what, HasSubstr("running for 3"));
    server.step_gate().Open();
    EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_TRUE(server.AwaitStopped().ok());
  }
}

// A stop that comes to its end is not hurried.
TEST(ServerTest, AStopThatEndsNeedsNoLastResort) {
  std::atomic<int> ended = 0;
  {
    TestServer::Options options;
    options.last_resort.end = [&ended](const std::string&) { ++ended; };
    TestServer server(options);
    HeldStream stream(&server);
    server.RequestStop();
    server.step_gate().Open();
    EXPECT_TRUE(stream.Finish().ok());
    EXPECT_TRUE(server.AwaitStopped().ok());
  }
  EXPECT_EQ(ended, 0);
}

// No port is touched: they are those of a server that runs.
TEST(ServerTest, ChecksWhatItWouldServe) {
  Server running(TestServer::Options().config, nullptr);
  ASSERT_TRUE(running.Listen().ok());
  ServerConfig config = TestServer::Options().config;
  config.grpc_address = "127.0.0.1:" + std::to_string(running.grpc_port());
  config.metrics_address = "127.0.0.1:" + std::to_string(running.metrics_port());
  config.models = {{"a", "/nowhere"}, {"b", "/nowhere"}};
  struct Row {
    const char* name;
    absl::Status loading;   // of model b
    absl::Status stepping;  // of model b
    TlsFiles tls;
    const char* failure;  // none: null
  };
  const Row rows[] = {
      {"good", {}, {}, {}, nullptr},
      {"bad checkpoint", absl::NotFoundError("config.json is missing"), {}, {}, "config.json is"},
      {"fails to compute", {}, absl::InternalError("out of memory"), {}, "out of memory"},
      {"no certificate", {}, {}, {"/nowhere/crt", "/nowhere/key", ""}, "/nowhere/crt"},
  };
  for (const Row& row : rows) {
    config.tls = row.tls;
    Server server(config,
                  [&](const ModelSource& source, const ServerConfig&,
                      const std::atomic<bool>&) -> absl::StatusOr<LoadedModel> {
                    if (source.name == "b" && !row.loading.ok()) return row.loading;
                    auto runner = std::make_unique<FakeModelRunner>(TestServer::Options().runner);
                    if (source.name == "b") {
                      runner->on_forward = [&](absl::Span<const SequenceChunk>) {
                        return row.stepping;
                      };
                    }
                    LoadedModel loaded;
                    loaded.runner = std::move(runner);
                    loaded.variant = "ccec";
                    loaded.max_context_length = 64;
                    std::promise<std::string> hash;
                    hash.set_value("0123456789abcdef");
                    loaded.weights_sha256 = hash.get_future();
                    return loaded;
                  });
    const absl::StatusOr<std::vector<std::string>> lines = server.Check();
    if (row.failure == nullptr) {
      ASSERT_TRUE(lines.ok()) << row.name << ": " << lines.status();
      EXPECT_THAT(
          *lines,
          ElementsAre(HasSubstr("model=a variant=ccec revision=d1f7621 dtype=float32 device=cpu"),
                      HasSubstr("model=b variant=ccec revision=d1f7621 dtype=float32 device=cpu")))
          << row.name;
    } else {
      EXPECT_THAT(std::string(lines.status().message()), HasSubstr(row.failure)) << row.name;
    }
  }
}

TEST(ServerTest, DrainsRunningCallsWhateverWatches) {
  TestServer server;
  HealthWatch watch(server.channel(), "");
  EXPECT_EQ(watch.Next(), "SERVING");
  HeldStream stream(&server);
  server.RequestStop();
  EXPECT_EQ(watch.Next(), "NOT_SERVING");
  EXPECT_EQ(HealthCheck(server.channel(), "ddl.v1.ModelService"), "NOT_SERVING");
  // The drain has begun once a call is refused.
  grpc::Status status;
  do {
    v1::TokenizeRequest request;
    request.add_texts("a");
    v1::TokenizeResponse tokens;
    grpc::ClientContext context;
    status = server.inference().Tokenize(&context, request, &tokens);
  } while (status.ok());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Decode(status).reason, "DRAINING");
  EXPECT_GT(Decode(status).retry_seconds, 0);
  const Streamed refused = ReadStream(server, GreedyRequest({1}, 1));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_server_draining"), 1);
  EXPECT_EQ(metrics.Sum("ddl_server_ready"), 0);
  EXPECT_EQ(metrics.Sum("ddl_admission_rejections_total", {"reason=\"draining\""}), 2);

  server.step_gate().Open();
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_TRUE(stream.got_end());
  const absl::Time start = absl::Now();
  EXPECT_TRUE(server.AwaitStopped().ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));  // of drain_timeout's 20
}

TEST(ServerTest, AcceptsDuringTheDrainDelay) {
  TestServer::Options options;
  options.config.drain_delay = absl::Hours(1);
  TestServer server(options);
  HealthWatch watch(server.channel(), "");
  EXPECT_EQ(watch.Next(), "SERVING");
  server.RequestStop();
  EXPECT_EQ(watch.Next(), "NOT_SERVING");
  EXPECT_TRUE(ReadStream(server, GreedyRequest({1}, 3)).status.ok());
  server.RequestStop();
  EXPECT_TRUE(server.AwaitStopped().ok());
}

TEST(ServerTest, EndsWhatOutlastsTheDrain) {
  TestServer::Options options;
  options.config.drain_timeout = absl::Milliseconds(50);
  std::atomic<bool> slow = false;
  options.on_forward = [&](absl::Span<const SequenceChunk>) {
    if (slow) absl::SleepFor(absl::Milliseconds(20));
    return absl::OkStatus();
  };
  TestServer server(options);
  HeldStream stream(&server);
  slow = true;
  server.step_gate().Open();
  server.RequestStop();
  EXPECT_TRUE(server.AwaitStopped().ok());
  EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(stream.got_end());
}

TEST(ServerTest, ASecondStopEndsItAtOnce) {
  TestServer::Options options;
  options.config.drain_timeout = absl::Hours(1);
  TestServer server(options);
  HeldStream stream(&server);
  server.RequestStop();
  server.RequestStop();
  server.step_gate().Open();
  EXPECT_TRUE(server.AwaitStopped().ok());
  // Either it was cut short, or it was already through.
  const grpc::Status status = stream.Finish();
  EXPECT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE)
      << status.error_message();
}

}  // namespace
}  // namespace ddl
