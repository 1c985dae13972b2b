// Who may call, how much, and what the log says of it.

#include <gmock/gmock.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/access/key_file.h"
#include "tests/server/test_server.h"

namespace ddl {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;
using testing::Not;

std::string Line(const std::string& name, const char* hash, const std::string& options = "") {
  return name + " " + hash + " " + options + "\n";
}

TestServer::Options WithKeys(const KeyFile& file) {
  TestServer::Options options;
  options.config.api_keys_file = file.path();
  options.config.api_keys_reload_interval = absl::Milliseconds(1);
  return options;
}

// What a call brought, and the metadata; those of a refusal that says when to come back are
// trailing.
struct Answer {
  grpc::Status status;
  std::multimap<std::string, std::string> metadata;

  std::string Of(const std::string& name) const {
    const auto found = metadata.find(name);
    return found == metadata.end() ? "" : found->second;
  }
};

using Metadata = std::vector<std::pair<std::string, std::string>>;

Answer Call(TestServer& server, const std::string& method, const std::string& request,
            const Metadata& metadata) {
  grpc::ClientContext context;
  for (const auto& [name, value] : metadata) context.AddMetadata(name, value);
  grpc::ByteBuffer response;
  Answer answer;
  answer.status = grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
      server.channel().get(),
      grpc::internal::RpcMethod(method.c_str(), grpc::internal::RpcMethod::NORMAL_RPC,
                                server.channel()),
      &context, Bytes(request), &response);
  for (const auto* part :
       {&context.GetServerInitialMetadata(), &context.GetServerTrailingMetadata()}) {
    for (const auto& [name, value] : *part) {
      answer.metadata.emplace(std::string(name.data(), name.size()),
                              std::string(value.data(), value.size()));
    }
  }
  return answer;
}

Metadata Bearer(const std::string& key) { return {{"authorization", "Bearer " + key}}; }

constexpr char kGenerate[] = "/ddl.v1.InferenceService/Generate";

StatusCode GenerateWith(TestServer& server, const Metadata& metadata) {
  return Call(server, kGenerate, GreedyRequest({1, 2}, 2).SerializeAsString(), metadata)
      .status.error_code();
}

TEST(CallersTest, EveryMethodButHealthWantsAKey) {
  const KeyFile file(Line("alice", kHashA));
  TestServer server(WithKeys(file));
  const std::string inference = "/ddl.v1.InferenceService/";
  const std::string models = "/ddl.v1.ModelService/";
  v1::TokenizeRequest tokenize;
  tokenize.add_texts("a");
  v1::DetokenizeRequest detokenize;
  detokenize.add_sequences()->add_ids(97);
  v1::EmbedRequest embed;
  embed.add_inputs()->set_text("a");
  v1::ScoreRequest score;
  score.add_inputs()->set_text("a");
  const std::string generate = GreedyRequest({1, 2}, 2).SerializeAsString();
  const std::vector<std::pair<std::string, std::string>> methods = {
      {inference + "Generate", generate},
      {inference + "GenerateStream", ""},
      {inference + "Embed", embed.SerializeAsString()},
      {inference + "Score", score.SerializeAsString()},
      {inference + "Tokenize", tokenize.SerializeAsString()},
      {inference + "Detokenize", detokenize.SerializeAsString()},
      {models + "ListModels", ""},
      {models + "GetModelInfo", ""},
      {models + "GetServerInfo", ""},
  };
  struct Row {
    const char* what;
    Metadata metadata;
    bool accepted;
  };
  const Row rows[] = {
      {"no key", {}, false},
      {"a wrong key", Bearer("secret-b"), false},
      {"an empty key", Bearer(""), false},
      {"another scheme", {{"authorization", "Basic secret-a"}}, false},
      {"two keys",
       {{"authorization", "Bearer secret-a"}, {"authorization", "Bearer secret-a"}},
       false},
      {"the key elsewhere", {{"x-api-key", "secret-a"}}, false},
      {"the key", Bearer("secret-a"), true},
  };
  for (const auto& [method, request] : methods) {
    for (const Row& row : rows) {
      SCOPED_TRACE(method + ", " + row.what);
      grpc::Status status;
      if (method == inference + "GenerateStream") {
        grpc::ClientContext context;
        for (const auto& [name, value] : row.metadata) context.AddMetadata(name, value);
        auto reader = server.inference().GenerateStream(&context, GreedyRequest({1, 2}, 2));
        for (v1::GenerateStreamResponse event; reader->Read(&event);) EXPECT_TRUE(row.accepted);
        status = reader->Finish();
      } else {
        status = Call(server, method, request, row.metadata).status;
      }
      EXPECT_EQ(status.error_code(), row.accepted ? StatusCode::OK : StatusCode::UNAUTHENTICATED);
      EXPECT_THAT(status.error_message(), Not(HasSubstr("secret")));
    }
  }
  EXPECT_EQ(HealthCheck(server.channel(), ""), "SERVING");
  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_requests_total", {"code=\"UNAUTHENTICATED\"", "model=\"unknown\""}),
            6 * 9);
  EXPECT_EQ(metrics.Sum("ddl_requests_in_flight"), 0);
}

TEST(CallersTest, RefusesACallWithoutAKeyBeforeParsingIt) {
  const KeyFile file(Line("alice", kHashA));
  TestServer server(WithKeys(file));
  EXPECT_EQ(Call(server, kGenerate, "no message", {}).status.error_code(),
            StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Call(server, kGenerate, "no message", Bearer("secret-a")).status.error_code(),
            StatusCode::INVALID_ARGUMENT);
}

TEST(CallersTest, HighPriorityTakesARight) {
  const KeyFile file(Line("alice", kHashA, "priority=high") + Line("bob", kHashB));
  struct Row {
    const char* key;
    v1::Priority priority;
    StatusCode code;
  };
  const Row rows[] = {
      {"secret-a", v1::PRIORITY_HIGH, StatusCode::OK},
      {"secret-b", v1::PRIORITY_HIGH, StatusCode::PERMISSION_DENIED},
      {"secret-b", v1::PRIORITY_NORMAL, StatusCode::OK},
      {"secret-b", v1::PRIORITY_UNSPECIFIED, StatusCode::OK},
      {"secret-b", v1::PRIORITY_LOW, StatusCode::OK},
  };
  TestServer server(WithKeys(file));
  for (const Row& row : rows) {
    v1::GenerateRequest request = GreedyRequest({1, 2}, 2);
    request.set_priority(row.priority);
    EXPECT_EQ(
        Call(server, kGenerate, request.SerializeAsString(), Bearer(row.key)).status.error_code(),
        row.code)
        << row.key << " " << row.priority;
  }
  TestServer open;
  v1::GenerateRequest request = GreedyRequest({1, 2}, 2);
  request.set_priority(v1::PRIORITY_HIGH);
  v1::GenerateResponse response;
  EXPECT_TRUE(Generate(open, request, &response).ok()) << "without keys everybody may";
}

TEST(CallersTest, RefusesMoreRequestsThanAMinuteAllows) {
  const KeyFile file(Line("alice", kHashA, "requests_per_minute=3") + Line("bob", kHashB));
  TestServer server(WithKeys(file));
  // Whatever they are: good, bad, of the other service.
  EXPECT_EQ(GenerateWith(server, Bearer("secret-a")), StatusCode::OK);
  EXPECT_EQ(Call(server, kGenerate, "bad", Bearer("secret-a")).status.error_code(),
            StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(Call(server, "/ddl.v1.ModelService/ListModels", "", Bearer("secret-a")).status.ok());
  const Answer refused =
      Call(server, kGenerate, GreedyRequest({1}, 1).SerializeAsString(), Bearer("secret-a"));
  EXPECT_EQ(refused.status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("'alice' may use 3 requests a minute"));
  const DecodedStatus details = Decode(refused.status);
  EXPECT_EQ(details.reason, "RATE_LIMITED");
  EXPECT_GT(details.retry_seconds, 0);
  EXPECT_LE(details.retry_seconds, 20);
  EXPECT_EQ(GenerateWith(server, Bearer("secret-b")), StatusCode::OK);
  EXPECT_EQ(server.metrics().Sum("ddl_admission_rejections_total",
                                 {"reason=\"rate_limited\"", "model=\"fake\""}),
            1);
}

// What a call may come to is taken when it begins; what it did not come to is given back.
TEST(CallersTest, RefusesMoreTokensThanAMinuteAllows) {
  const KeyFile file(Line("alice", kHashA, "tokens_per_minute=60"));
  TestServer server(WithKeys(file));
  const auto call = [&](const v1::GenerateRequest& request) {
    return Call(server, kGenerate, request.SerializeAsString(), Bearer("secret-a")).status;
  };
  v1::GenerateRequest stopped = GreedyRequest({1, 2, 3, 4, 5}, 50);
  v1::GenerateResponse whole;
  {
    TestServer open;
    ASSERT_TRUE(Generate(open, stopped, &whole).ok());
  }
  // Of 55 tokens it comes to 5 + 1: 54 are left, give or take what flows in meanwhile.
  stopped.mutable_stopping()->add_stop_token_ids(whole.completions(0).tokens(0).token_id());
  ASSERT_TRUE(call(stopped).ok());
  EXPECT_TRUE(call(GreedyRequest({1, 2}, 50)).ok());  // 2 + 50
  v1::GenerateRequest several = GreedyRequest({1, 2}, 4);
  several.mutable_sampling()->set_n(5);
  const grpc::Status refused = call(several);  // 2 + 5 * 4
  EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Decode(refused).reason, "RATE_LIMITED");
  EXPECT_GT(Decode(refused).retry_seconds, 5);  // of some 20 tokens, one a second
  v1::EmbedRequest embed;
  for (int i = 0; i < 4; ++i) embed.add_inputs()->set_text("0123456789");
  EXPECT_EQ(
      Call(server, "/ddl.v1.InferenceService/Embed", embed.SerializeAsString(), Bearer("secret-a"))
          .status.error_code(),
      StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(server.metrics().Sum("ddl_admission_rejections_total", {"reason=\"rate_limited\""}), 2);
}

// Callers move to the new key between the two changes of the file: none of their calls fails.
TEST(CallersTest, KeysAreRotatedUnderLoad) {
  const KeyFile file(Line("alice", kHashA));
  TestServer server(WithKeys(file));
  std::atomic<bool> use_new = false, stop = false;
  std::atomic<int> calls = 0, failures = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      while (!stop) {
        const Metadata key = Bearer(use_new ? "secret-b" : "secret-a");
        if (GenerateWith(server, key) != StatusCode::OK) ++failures;
        ++calls;
      }
    });
  }
  const auto await_reloads = [&](const char* result, int count) {
    server.AwaitMetrics([&](const ScrapedMetrics& metrics) {
      return metrics.Sum("ddl_api_keys_reloads_total", {result}) == count;
    });
  };
  const auto await_calls = [&](int more) {
    const int before = calls;
    while (calls < before + more) std::this_thread::yield();
  };
  await_calls(20);
  file.Replace(Line("alice", kHashA) + Line("alice", kHashB));
  await_reloads("result=\"ok\"", 1);
  use_new = true;
  await_calls(20);  // the last that used the old one are over
  file.Replace("not a line");
  await_reloads("result=\"failed\"", 1);
  await_calls(20);
  file.Replace(Line("alice", kHashB));
  await_reloads("result=\"ok\"", 2);
  await_calls(20);
  stop = true;
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(failures, 0) << "of " << calls;
  EXPECT_EQ(GenerateWith(server, Bearer("secret-a")), StatusCode::UNAUTHENTICATED);
}

TEST(CallersTest, AFileThatCannotServeStopsTheStart) {
  const KeyFile file("alice secret-a\n");
  for (const std::string& path : {file.path(), std::string("/nowhere/keys")}) {
    ServerConfig config = WithKeys(file).config;
    config.api_keys_file = path;
    Server server(config,
                  [](const ModelSource&, const ServerConfig&,
                     const std::atomic<bool>&) -> absl::StatusOr<LoadedModel> {
                    return absl::InternalError("not reached");
                  });
    const absl::Status status = server.Listen();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--api_keys_file: "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret")));
  }
}

// What the default logger writes while it lives.
class CapturedLog {
 public:
  CapturedLog() {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(text_);
    auto logger = std::make_shared<spdlog::logger>("captured", sink);
    logger->set_pattern("%v");
    spdlog::set_default_logger(logger);
  }
  ~CapturedLog() { spdlog::set_default_logger(before_); }

  // The lines about requests, once no server writes any more.
  std::vector<nlohmann::json> Requests() const {
    std::vector<nlohmann::json> requests;
    std::istringstream lines(text_.str());
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("\"request_id\"")) {
        requests.push_back(nlohmann::json::parse("{" + line + "}"));
      }
    }
    return requests;
  }
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
};

// Each is refused by our own word, so that the log and the metrics say what the client hears.
TEST(CallersTest, RefusesLongMessages) {
  constexpr size_t kMost = 2000;
  const CapturedLog log;
  std::vector<std::string> expected;
  {
    TestServer::Options options;
    options.config.max_message_bytes = kMost;
    options.config.log_format = LogFormat::kJson;
    TestServer server(options);
    struct Row {
      size_t bytes;
      StatusCode code;
      const char* name;
    };
    const Row rows[] = {
        {kMost, StatusCode::OK, "OK"},
        {kMost + 1, StatusCode::RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"},
        {kMost * 10, StatusCode::RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"},
        {kMost * 5000, StatusCode::RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"},
    };
    for (const Row& row : rows) {
      v1::TokenizeRequest request;
      request.add_texts(std::string(row.bytes, 'a'));
      const size_t around = request.ByteSizeLong() - row.bytes;  // tag and length
      request.mutable_texts(0)->resize(row.bytes - around);
      ASSERT_EQ(request.ByteSizeLong(), row.bytes);
      const grpc::Status status =
          Call(server, "/ddl.v1.InferenceService/Tokenize", request.SerializeAsString(), {}).status;
      EXPECT_EQ(status.error_code(), row.code) << row.bytes << ": " << status.error_message();
      if (!status.ok()) {
        EXPECT_THAT(status.error_message(), HasSubstr(std::to_string(row.bytes) + " bytes"));
      }
      expected.push_back(row.name);
    }
    EXPECT_EQ(server.metrics().Sum("ddl_requests_total",
                                   {"method=\"Tokenize\"", "code=\"RESOURCE_EXHAUSTED\""}),
              3);
  }
  std::vector<std::string> codes;
  for (const nlohmann::json& line : log.Requests()) codes.push_back(line["code"]);
  EXPECT_EQ(codes, expected) << log.text();
}

// A message that is small until it is unpacked would have no bound.
TEST(CallersTest, TakesNoCompressedMessages) {
  TestServer server;
  v1::TokenizeRequest request;
  request.add_texts("a");
  const std::pair<grpc_compression_algorithm, StatusCode> rows[] = {
      {GRPC_COMPRESS_NONE, StatusCode::OK},
      {GRPC_COMPRESS_GZIP, StatusCode::UNIMPLEMENTED},
      {GRPC_COMPRESS_DEFLATE, StatusCode::UNIMPLEMENTED},
  };
  for (const auto& [algorithm, code] : rows) {
    grpc::ClientContext context;
    context.set_compression_algorithm(algorithm);
    v1::TokenizeResponse response;
    EXPECT_EQ(server.inference().Tokenize(&context, request, &response).error_code(), code)
        << algorithm;
  }
}

// A client with a retry policy waits as long as the refusal says, not as its policy would.
TEST(CallersTest, SendsRetryPushback) {
  constexpr char kPushback[] = "grpc-retry-pushback-ms";
  const KeyFile file(Line("alice", kHashA, "requests_per_minute=60"));
  TestServer server(WithKeys(file));
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(R"({"methodConfig": [{"name": [{}], "retryPolicy": {
      "maxAttempts": 2, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1,
      "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]})");
  const auto retrying = v1::ModelService::NewStub(
      grpc::CreateCustomChannel(server.address(), grpc::InsecureChannelCredentials(), arguments));
  const auto list = [](v1::ModelService::Stub& stub, grpc::ClientContext* context) {
    context->AddMetadata("authorization", "Bearer secret-a");
    v1::ListModelsResponse response;
    return stub.ListModels(context, v1::ListModelsRequest(), &response);
  };
  const auto refusals = [&server] {
    return server.metrics().Sum("ddl_admission_rejections_total", {"reason=\"rate_limited\""});
  };

  // Until the minute's worth is used. Its last call is told how long to wait, in both ways:
  // gRPC's clients, which may come some milliseconds early, a little longer.
  std::unique_ptr<grpc::ClientContext> context;
  grpc::Status status;
  do {
    context = std::make_unique<grpc::ClientContext>();
    status = list(server.models(), context.get());
  } while (status.ok());
  ASSERT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  const auto& trailing = context->GetServerTrailingMetadata();
  ASSERT_EQ(trailing.count(kPushback), 1u);
  const grpc::string_ref pushback = trailing.find(kPushback)->second;
  EXPECT_EQ(std::stoi(std::string(pushback.data(), pushback.size())),
            std::ceil(Decode(status).retry_seconds * 1000) + 20);
  ASSERT_EQ(refusals(), 1);

  grpc::ClientContext second;
  status = list(*retrying, &second);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(refusals(), 2);
  EXPECT_EQ(second.GetServerTrailingMetadata().count(kPushback), 0u);
}

TEST(RequestLogTest, HasALineForEachCall) {
  const KeyFile file(Line("alice", kHashA, "requests_per_minute=4"));
  const std::string trace = "0af7651916cd43dd8448eb211c80319c";
  const std::string parent = "b7ad6b7169203331";
  const CapturedLog log;
  std::vector<Answer> answers;
  {
    TestServer::Options options = WithKeys(file);
    options.config.log_format = LogFormat::kJson;
    TestServer server(options);
    const auto call = [&](const char* key, const v1::GenerateRequest& request,
                          Metadata metadata = {}) {
      metadata.emplace_back("authorization", std::string("Bearer ") + key);
      answers.push_back(Call(server, kGenerate, request.SerializeAsString(), metadata));
    };
    v1::GenerateRequest request;
    request.mutable_prompt()->set_text("sesame");
    request.mutable_stopping()->set_max_tokens(3);
    request.mutable_stopping()->set_ignore_eos(true);
    call(
        "secret-a", request,
        {{"x-request-id", "from-metadata"}, {"traceparent", "00-" + trace + "-" + parent + "-01"}});
    request.set_request_id("from-message");
    call("secret-a", request, {{"x-request-id", "from-metadata"}});
    request.set_request_id("two words\n");
    request.set_model("sesame-7b");
    call("secret-a", request, {{"traceparent", "00-" + trace + "-" + parent}});
    call("secret-b", request, {{"x-request-id", std::string(129, 'x')}});
    request.clear_model();
    request.clear_request_id();
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer secret-a");
    auto reader = server.inference().GenerateStream(&context, request);
    for (v1::GenerateStreamResponse event; reader->Read(&event);) continue;
    answers.push_back({.status = reader->Finish(), .metadata = {}});
    for (const auto& [name, value] : context.GetServerInitialMetadata()) {
      answers.back().metadata.emplace(std::string(name.data(), name.size()),
                                      std::string(value.data(), value.size()));
    }
    call("secret-a", request);
  }
  const std::vector<nlohmann::json> lines = log.Requests();
  ASSERT_EQ(lines.size(), 6u) << log.text();
  struct Row {
    const char* method;
    const char* model;
    const char* key;  // null: none
    const char* code;
    int tokens;  // generated; -1: the engine did not see it
  };
  const Row rows[] = {
      {"Generate", "fake", "alice", "OK", 3},
      {"Generate", "fake", "alice", "OK", 3},
      {"Generate", "unknown", "alice", "NOT_FOUND", -1},
      {"Generate", "unknown", nullptr, "UNAUTHENTICATED", -1},
      {"GenerateStream", "fake", "alice", "OK", 3},
      {"Generate", "fake", "alice", "RESOURCE_EXHAUSTED", -1},
  };
  for (size_t i = 0; i < lines.size(); ++i) {
    SCOPED_TRACE(lines[i].dump());
    EXPECT_EQ(lines[i]["method"], rows[i].method);
    EXPECT_EQ(lines[i]["model"], rows[i].model);
    EXPECT_EQ(lines[i].value("key", ""), rows[i].key == nullptr ? "" : rows[i].key);
    EXPECT_EQ(lines[i]["code"], rows[i].code);
    EXPECT_EQ(lines[i].value("completion_tokens", -1), rows[i].tokens);
    EXPECT_EQ(lines[i].contains("queue_ms"), rows[i].tokens >= 0);
    EXPECT_GE(lines[i]["duration_ms"].get<double>(), lines[i].value("decode_ms", 0.0));
    EXPECT_THAT(lines[i]["peer"].get<std::string>(), HasSubstr("127.0.0.1"));
    const std::string sent = answers[i].Of("x-request-id");
    if (i != 2) {
      EXPECT_EQ(lines[i]["request_id"], sent);
    }
  }
  EXPECT_EQ(lines[0]["prompt_tokens"], 6);
  EXPECT_EQ(lines[5]["reason"], "RATE_LIMITED");

  EXPECT_EQ(lines[0]["request_id"], "from-metadata");
  EXPECT_EQ(lines[0]["trace_id"], trace);
  EXPECT_EQ(lines[0]["parent_span_id"], parent);
  EXPECT_EQ(answers[0].Of("traceparent"),
            "00-" + trace + "-" + lines[0]["span_id"].get<std::string>() + "-01");
  EXPECT_EQ(lines[1]["request_id"], "from-message");
  EXPECT_FALSE(lines[1].contains("trace_id"));
  EXPECT_EQ(lines[2]["request_id"], "two words\n");
  EXPECT_EQ(answers[2].Of("x-request-id"), "") << "metadata cannot carry it";
  EXPECT_FALSE(lines[2].contains("trace_id")) << "no traceparent";
  EXPECT_EQ(lines[3]["request_id"].get<std::string>().size(), 36u) << "too long to keep";

  for (const char* secret : {"secret", "8766b9cb", "ff492ef7", "sesame"}) {
    EXPECT_THAT(log.text(), Not(HasSubstr(secret)));
  }
}

}  // namespace
}  // namespace ddl
