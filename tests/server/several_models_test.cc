#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "tests/server/engine/engine_fixture.h"
#include "tests/server/test_server.h"

namespace ddl {
namespace {

using ::testing::HasSubstr;

// Three models that give different tokens; the first is the default.
TestServer::Options ThreeModels() {
  TestServer::Options options;
  options.config.models = {{"large", "/a"}, {"medium", "/b"}, {"small", "/c"}};
  options.vocab_sizes = {{"large", 255}, {"medium", 200}, {"small", 100}};
  return options;
}

std::vector<TokenId> Expected(int i, int count, TokenId vocab_size) {
  return ExpectedTokens(Prompt(3 + i, i), count, {.temperature = 0}, vocab_size);
}

TEST(SeveralModelsTest, CallsGoToTheModelTheyName) {
  TestServer server(ThreeModels());
  struct Row {
    const char* asked;
    const char* answers;
    TokenId vocab_size;
  };
  const Row rows[] = {{"", "large", 255},
                      {"large", "large", 255},
                      {"medium", "medium", 200},
                      {"small", "small", 100}};
  std::vector<std::thread> clients;
  for (int i = 0; i < 24; ++i) {
    clients.emplace_back([&, i] {
      const Row& row = rows[i % 4];
      v1::GenerateRequest request = GreedyRequest(Prompt(3 + i, i), 20);
      request.set_model(row.asked);
      v1::GenerateResponse response;
      ASSERT_TRUE(Generate(server, request, &response).ok());
      EXPECT_EQ(response.model(), row.answers);
      EXPECT_EQ(Ids(response.completions(0).tokens()), Expected(i, 20, row.vocab_size)) << i;
      const Streamed streamed = ReadStream(server, request);
      EXPECT_EQ(streamed.events.front().start().model(), row.answers);
      EXPECT_EQ(streamed.TokenIds(), Expected(i, 20, row.vocab_size)) << i;
    });
  }
  for (std::thread& client : clients) client.join();

  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_requests_total", {"model=\"large\""}), 24);
  EXPECT_EQ(metrics.Sum("ddl_requests_total", {"model=\"medium\""}), 12);
  EXPECT_EQ(metrics.Sum("ddl_request_finished_total", {"model=\"small\""}), 12);
  EXPECT_EQ(metrics.Sum("ddl_generated_tokens_total", {"model=\"small\""}), 12 * 20);
  EXPECT_EQ(metrics.Count("ddl_model_info"), 3);
}

// Limits are each model's own, and those unknown hear who there is.
TEST(SeveralModelsTest, KnowsEach) {
  TestServer server(ThreeModels());
  v1::GenerateRequest request = GreedyRequest({150}, 1);
  v1::GenerateResponse response;
  EXPECT_TRUE(Generate(server, request, &response).ok());
  request.set_model("small");
  const grpc::Status refused = Generate(server, request, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("100, not 150"));
  request.set_model("huge");
  const grpc::Status unknown = Generate(server, request, &response);
  EXPECT_EQ(unknown.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(unknown.error_message(), HasSubstr("'huge'"));
  EXPECT_THAT(unknown.error_message(), HasSubstr("served: 'large', 'medium', 'small'"));

  v1::ListModelsResponse models;
  grpc::ClientContext context;
  ASSERT_TRUE(server.models().ListModels(&context, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 3);
  EXPECT_EQ(models.models(0).name(), "large");
  EXPECT_EQ(models.models(2).vocab_size(), 100u);
  v1::ServerInfo info;
  grpc::ClientContext context2;
  ASSERT_TRUE(server.models().GetServerInfo(&context2, {}, &info).ok());
  EXPECT_EQ(info.max_running(), 3 * 8u);
  EXPECT_EQ(info.kv_tokens_capacity(), 3 * 1024u);
}

TEST(SeveralModelsTest, ComputeOneAtATime) {
  std::atomic<int> computing = 0;
  std::atomic<int> most = 0;
  TestServer::Options options = ThreeModels();
  options.on_forward = [&](absl::Span<const SequenceChunk>) {
    const int now = ++computing;
    if (now > most) most = now;
    std::this_thread::yield();
    --computing;
    return absl::OkStatus();
  };
  TestServer server(options);
  std::vector<std::thread> clients;
  for (const char* model : {"large", "medium", "small"}) {
    for (int i = 0; i < 4; ++i) {
      clients.emplace_back([&server, model] {
        v1::GenerateRequest request = GreedyRequest({1}, 40);
        request.set_model(model);
        v1::GenerateResponse response;
        EXPECT_TRUE(Generate(server, request, &response).ok());
      });
    }
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(most, 1);
}

TEST(SeveralModelsTest, ServesOnceAllAreReady) {
  Gate gate;
  gate.Close();
  TestServer::Options options = ThreeModels();
  options.wait_until_ready = false;
  options.on_load = [&](const std::string& model) {
    if (model == "medium") gate.Pass();
    return absl::OkStatus();
  };
  TestServer server(options);
  gate.AwaitWaiter();
  EXPECT_EQ(HealthCheck(server.channel(), ""), "NOT_SERVING");
  // The first can be asked already; the others are loading.
  EXPECT_TRUE(ReadStream(server, GreedyRequest({1}, 1)).status.ok());
  for (const char* model : {"medium", "small"}) {
    v1::GenerateRequest request = GreedyRequest({1}, 1);
    request.set_model(model);
    const Streamed streamed = ReadStream(server, request);
    EXPECT_EQ(streamed.status.error_code(), grpc::StatusCode::UNAVAILABLE) << model;
    EXPECT_EQ(Decode(streamed.status).reason, "LOADING") << model;
  }
  gate.Open();
  server.AwaitReady();
  v1::GenerateRequest request = GreedyRequest({1}, 1);
  request.set_model("small");
  EXPECT_TRUE(ReadStream(server, request).status.ok());
}

TEST(SeveralModelsTest, OneThatCannotBeLoadedEndsIt) {
  TestServer::Options options = ThreeModels();
  options.wait_until_ready = false;
  options.on_load = [](const std::string& model) {
    return model == "small" ? absl::NotFoundError("/c/config.json is missing") : absl::OkStatus();
  };
  TestServer server(options);
  EXPECT_EQ(server.AwaitStopped(), absl::NotFoundError("/c/config.json is missing"));
}

}  // namespace
}  // namespace ddl
