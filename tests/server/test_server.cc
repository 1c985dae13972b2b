#include "tests/server/test_server.h"

#include <arpa/inet.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <grpcpp/support/sync_stream.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>
#include <utility>

#include "base/check.h"
#include "google/rpc/status.pb.h"
#include "tests/server/byte_tokenizer.h"

namespace ddl {
namespace {

std::string HealthRequest(const std::string& service) {
  return std::string("\x0A") + static_cast<char>(service.size()) + service;
}

std::string HealthStatus(const std::string& response) {
  if (response.empty()) return "UNKNOWN";  // proto3 leaves out 0
  switch (response.size() == 2 && response[0] == '\x08' ? response[1] : 0) {
    case 1:
      return "SERVING";
    case 2:
      return "NOT_SERVING";
    case 3:
      return "SERVICE_UNKNOWN";
    default:
      return "not a HealthCheckResponse";
  }
}

}  // namespace

void Gate::Close() {
  const MutexLock lock(mu_);
  open_ = false;
}

void Gate::Open() {
  const MutexLock lock(mu_);
  open_ = true;
  changed_.NotifyAll();
}

void Gate::Pass() {
  const MutexLock lock(mu_);
  ++waiting_;
  changed_.NotifyAll();
  while (!open_) changed_.Wait(mu_);
  --waiting_;
}

void Gate::AwaitWaiter() {
  const MutexLock lock(mu_);
  while (waiting_ == 0) changed_.Wait(mu_);
}

double ScrapedMetrics::Sum(const std::string& name, const std::vector<std::string>& labels) const {
  double sum = 0;
  std::istringstream lines(text_);
  for (std::string line; std::getline(lines, line);) {
    if (line.substr(0, line.find_first_of("{ ")) != name) continue;
    bool matches = true;
    for (const std::string& label : labels) matches &= line.find(label) != std::string::npos;
    if (matches) sum += std::strtod(line.c_str() + line.rfind(' '), nullptr);
  }
  return sum;
}

int ScrapedMetrics::Count(const std::string& name, const std::vector<std::string>& labels) const {
  int count = 0;
  std::istringstream lines(text_);
  for (std::string line; std::getline(lines, line);) {
    if (line.substr(0, line.find_first_of("{ ")) != name) continue;
    bool matches = true;
    for (const std::string& label : labels) matches &= line.find(label) != std::string::npos;
    count += matches ? 1 : 0;
  }
  return count;
}

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  DDL_CHECK(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0,
            "cannot reach the metrics page");
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  DDL_CHECK(write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size()),
            "cannot ask for a page");
  std::string response;
  char buffer[4096];
  for (ssize_t size; (size = read(fd, buffer, sizeof buffer)) > 0;) response.append(buffer, size);
  close(fd);
  return response;
}

ScrapedMetrics Scrape(int port) {
  const std::string response = HttpGet(port, "/metrics");
  DDL_CHECK(response.find(" 200 OK\r\n") != std::string::npos, "the metrics page is missing");
  return ScrapedMetrics(response.substr(response.find("\r\n\r\n") + 4));
}

DecodedStatus Decode(const grpc::Status& status) {
  DecodedStatus decoded;
  google::rpc::Status proto;
  if (status.error_details().empty()) return decoded;
  DDL_CHECK(proto.ParseFromString(status.error_details()), "not a google.rpc.Status");
  DDL_CHECK(proto.code() == status.error_code() && proto.message() == status.error_message(),
            "the details are of another status");
  for (const auto& any : proto.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) {
      decoded.reason = info.reason();
      decoded.domain = info.domain();
      decoded.metadata = {info.metadata().begin(), info.metadata().end()};
    } else if (any.UnpackTo(&retry)) {
      decoded.retry_seconds =
          static_cast<double>(retry.retry_delay().seconds()) + 1e-9 * retry.retry_delay().nanos();
    } else {
      DDL_CHECK(any.UnpackTo(&decoded.bad_request), "unexpected details");
    }
  }
  return decoded;
}

TestServer::Options::Options() {
  config.models = {{"fake", "/nowhere"}};
  config.grpc_address = "127.0.0.1:0";
  config.metrics_address = "127.0.0.1:0";
  config.engine.max_running_sequences = 8;
  config.engine.max_step_tokens = 64;
  runner.vocab_size = 260;
  runner.kv_num_blocks = 256;
}

TestServer::TestServer(Options options) : options_(std::move(options)) {
  // Everybody's tests run here, and tests that crash leave no tidy channel behind.
  server_ = std::make_unique<Server>(
      options_.config,
      [this](const ModelSource& source, const ServerConfig&,
             const std::atomic<bool>&) -> absl::StatusOr<LoadedModel> {
        if (options_.on_load) {
          if (absl::Status status = options_.on_load(source.name); !status.ok()) return status;
        }
        FakeModelRunner::Options runner_options = options_.runner;
        if (const auto found = options_.vocab_sizes.find(source.name);
            found != options_.vocab_sizes.end()) {
          runner_options.vocab_size = found->second;
        }
        auto runner = std::make_unique<FakeModelRunner>(runner_options);
        runner->on_forward = [this](absl::Span<const SequenceChunk> chunks) {
          step_gate_.Pass();
          return options_.on_forward ? options_.on_forward(chunks) : absl::OkStatus();
        };
        runner->is_not_finite = options_.is_not_finite;
        LoadedModel loaded;
        loaded.runner = std::move(runner);
        loaded.variant = options_.variant;
        if (options_.with_tokenizer) {
          loaded.tokenizer = MakeByteTokenizer();
          loaded.eos_tokens = {{kByteTokenizerEos}, loaded.tokenizer->source(), {}};
        }
        loaded.max_context_length = options_.max_context_length;
        std::promise<std::string> hash;
        hash.set_value("0123456789abcdef");
        loaded.weights_sha256 = hash.get_future();
        return loaded;
      },
      options_.now, options_.last_resort);
  const absl::Status listening = server_->Listen();
  DDL_CHECK(listening.ok(), "the test server cannot listen");
  thread_ = std::thread([this] { served_ = server_->Serve(); });
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  // Windows that do not grow, so that a client that does not read holds little.
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  channel_ = grpc::CreateCustomChannel(address(), grpc::InsecureChannelCredentials(), arguments);
  inference_ = v1::InferenceService::NewStub(channel_);
  models_ = v1::ModelService::NewStub(channel_);
  if (options_.wait_until_ready) AwaitReady();
}

TestServer::~TestServer() {
  step_gate_.Open();
  server_->RequestStop();
  server_->RequestStop();
  if (thread_.joinable()) thread_.join();
}

void TestServer::AwaitReady() {
  HealthWatch watch(channel_, "");
  for (std::string status; (status = watch.Next()) != "SERVING";) {
    DDL_CHECK(status != "END", "the server ended before it was ready");
  }
}

void TestServer::AwaitRequests(int count) {
  AwaitMetrics([count](const ScrapedMetrics& metrics) {
    return metrics.Sum("ddl_requests_running") + metrics.Sum("ddl_requests_waiting") == count;
  });
}

ScrapedMetrics TestServer::AwaitMetrics(const std::function<bool(const ScrapedMetrics&)>& accept) {
  while (true) {
    ScrapedMetrics metrics = this->metrics();
    if (accept(metrics)) return metrics;
    std::this_thread::yield();
  }
}

absl::Status TestServer::AwaitStopped() {
  thread_.join();
  return served_;
}

v1::GenerateRequest GreedyRequest(const std::vector<TokenId>& prompt, int max_tokens) {
  v1::GenerateRequest request;
  for (const TokenId id : prompt) request.mutable_prompt()->mutable_token_ids()->add_ids(id);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(max_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

std::vector<TokenId> Ids(const google::protobuf::RepeatedPtrField<v1::TokenInfo>& tokens) {
  std::vector<TokenId> ids;
  for (const v1::TokenInfo& token : tokens) ids.push_back(static_cast<TokenId>(token.token_id()));
  return ids;
}

std::string Streamed::Text(uint32_t index) const {
  std::string text;
  for (const auto& event : events) {
    if (event.has_delta() && event.delta().index() == index) text += event.delta().text();
  }
  return text;
}

std::vector<TokenId> Streamed::TokenIds(uint32_t index) const {
  std::vector<TokenId> all;
  for (const auto& event : events) {
    if (!event.has_delta() || event.delta().index() != index) continue;
    const std::vector<TokenId> ids = Ids(event.delta().tokens());
    all.insert(all.end(), ids.begin(), ids.end());
  }
  return all;
}

std::string Streamed::Shape() const {
  std::string shape;
  for (const auto& event : events) {
    shape += event.has_start() ? 'S' : event.has_delta() ? 'D' : event.has_end() ? 'E' : '?';
  }
  return shape;
}

Streamed ReadStream(TestServer& server, const v1::GenerateRequest& request) {
  Streamed streamed;
  grpc::ClientContext context;
  auto reader = server.inference().GenerateStream(&context, request);
  for (v1::GenerateStreamResponse event; reader->Read(&event);) streamed.events.push_back(event);
  streamed.status = reader->Finish();
  return streamed;
}

grpc::Status Generate(TestServer& server, const v1::GenerateRequest& request,
                      v1::GenerateResponse* response) {
  grpc::ClientContext context;
  return server.inference().Generate(&context, request, response);
}

grpc::Status Embed(TestServer& server, const v1::EmbedRequest& request,
                   v1::EmbedResponse* response) {
  grpc::ClientContext context;
  return server.inference().Embed(&context, request, response);
}

grpc::Status Score(TestServer& server, const v1::ScoreRequest& request,
                   v1::ScoreResponse* response) {
  grpc::ClientContext context;
  return server.inference().Score(&context, request, response);
}

grpc::ByteBuffer Bytes(const std::string& text) {
  const grpc::Slice slice(text);
  return grpc::ByteBuffer(&slice, 1);
}

std::string Text(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (!bytes.Dump(&slices).ok()) return text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

grpc::Status RawUnaryCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                          const std::string& request, std::string* response) {
  grpc::ClientContext context;
  grpc::ByteBuffer response_bytes;
  const grpc::Status status = grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
      channel.get(),
      grpc::internal::RpcMethod(method.c_str(), grpc::internal::RpcMethod::NORMAL_RPC, channel),
      &context, Bytes(request), &response_bytes);
  *response = Text(response_bytes);
  return status;
}

std::string HealthCheck(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  std::string response;
  const grpc::Status status =
      RawUnaryCall(channel, "/grpc.health.v1.Health/Check", HealthRequest(service), &response);
  return status.ok() ? HealthStatus(response) : std::string(StatusCodeName(status.error_code()));
}

HealthWatch::HealthWatch(const std::shared_ptr<grpc::Channel>& channel,
                         const std::string& service) {
  context_.set_wait_for_ready(true);
  reader_.reset(grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(
      channel.get(),
      grpc::internal::RpcMethod("/grpc.health.v1.Health/Watch",
                                grpc::internal::RpcMethod::SERVER_STREAMING, channel),
      &context_, Bytes(HealthRequest(service))));
}

HealthWatch::~HealthWatch() {
  context_.TryCancel();
  (void)reader_->Finish();
}

std::string HealthWatch::Next() {
  grpc::ByteBuffer response;
  return reader_->Read(&response) ? HealthStatus(Text(response)) : "END";
}

}  // namespace ddl
