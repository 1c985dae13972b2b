#ifndef DDL_TESTS_SERVER_TEST_SERVER_H_
#define DDL_TESTS_SERVER_TEST_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/mutex.h"
#include "ddl/v1/inference.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "server/server.h"
#include "tests/server/engine/fake_model_runner.h"

namespace ddl {

// Where a thread can be made to wait. Open at first.
class Gate {
 public:
  void Close();
  void Open();
  // Returns once the gate is open.
  void Pass();
  // Returns once somebody waits in Pass.
  void AwaitWaiter();

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = true;
  int waiting_ ABSL_GUARDED_BY(mu_) = 0;
};

// The /metrics page, read over HTTP.
class ScrapedMetrics {
 public:
  explicit ScrapedMetrics(std::string text) : text_(std::move(text)) {}

  // Sum of the values of all series of this name that have all of the given labels, each
  // written as in the page: method="Embed".
  double Sum(const std::string& name, const std::vector<std::string>& labels = {}) const;
  // Number of such series.
  int Count(const std::string& name, const std::vector<std::string>& labels = {}) const;
  const std::string& text() const { return text_; }

 private:
  const std::string text_;
};
ScrapedMetrics Scrape(int port);

// The answer to a GET on the same address, headers and all.
std::string HttpGet(int port, const std::string& path);

// What a client reads in a status beside its code and message.
struct DecodedStatus {
  std::string reason;
  std::string domain;
  std::map<std::string, std::string> metadata;
  double retry_seconds = -1;  // -1: none
  google::rpc::BadRequest bad_request;
};
DecodedStatus Decode(const grpc::Status& status);

// A whole server over the fake model, on free ports of the loopback, serving in a thread.
class TestServer {
 public:
  struct Options {
    Options();
    ServerConfig config;
    FakeModelRunner::Options runner;
    int32_t max_context_length = 64;
    bool with_tokenizer = true;
    bool wait_until_ready = true;
    std::string variant = "ccec";
    std::map<std::string, TokenId> vocab_sizes;  // of models that have another than runner's
    // Of the model's name: the loader's result where it is not OK.
    std::function<absl::Status(const std::string&)> on_load;
    std::function<absl::Status(absl::Span<const SequenceChunk>)> on_forward;
    std::function<bool(const SequenceChunk&)> is_not_finite;
    std::function<absl::Time()> now = absl::Now;
    LastResort last_resort;
  };

  explicit TestServer(Options options = {});
  ~TestServer();  // at once, unless stopped before

  v1::InferenceService::Stub& inference() { return *inference_; }
  v1::ModelService::Stub& models() { return *models_; }
  const std::shared_ptr<grpc::Channel>& channel() { return channel_; }
  // Where it listens, for other channels.
  std::string address() const { return "127.0.0.1:" + std::to_string(server_->grpc_port()); }
  std::string HttpPage(const std::string& path) { return HttpGet(server_->metrics_port(), path); }
  ScrapedMetrics metrics() { return Scrape(server_->metrics_port()); }
  // Every step passes it; also while warming up.
  Gate& step_gate() { return step_gate_; }

  void AwaitReady();
  // Waits until the default model's engine has so many requests, running and waiting.
  void AwaitRequests(int count);
  // Waits for a scrape that `accept` is true of, and returns it.
  ScrapedMetrics AwaitMetrics(const std::function<bool(const ScrapedMetrics&)>& accept);
  void RequestStop() { server_->RequestStop(); }
  // Waits for Serve to return and says what it returned.
  absl::Status AwaitStopped();

 private:
  Options options_;
  Gate step_gate_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::thread thread_;
  absl::Status served_;  // of Serve; the thread's until it is joined
};

// A greedy request for `max_tokens` tokens after a prompt of token ids.
v1::GenerateRequest GreedyRequest(const std::vector<TokenId>& prompt, int max_tokens);

std::vector<TokenId> Ids(const google::protobuf::RepeatedPtrField<v1::TokenInfo>& tokens);

// What a stream brought.
struct Streamed {
  std::vector<v1::GenerateStreamResponse> events;
  grpc::Status status;

  std::string Text(uint32_t index = 0) const;
  std::vector<TokenId> TokenIds(uint32_t index = 0) const;
  // "SDDE" for a start, two deltas and an end.
  std::string Shape() const;
};

// Calls to their end.
Streamed ReadStream(TestServer& server, const v1::GenerateRequest& request);
grpc::Status Generate(TestServer& server, const v1::GenerateRequest& request,
                      v1::GenerateResponse* response);
grpc::Status Embed(TestServer& server, const v1::EmbedRequest& request,
                   v1::EmbedResponse* response);
grpc::Status Score(TestServer& server, const v1::ScoreRequest& request,
                   v1::ScoreResponse* response);

// Calls by name, with messages as bytes: for protocols whose messages we do not build, and for
// requests that no well-behaved client sends.
grpc::ByteBuffer Bytes(const std::string& text);
std::string Text(const grpc::ByteBuffer& bytes);
grpc::Status RawUnaryCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                          const std::string& request, std::string* response);

// grpc.health.v1.Health. The names of ServingStatus, or that of the status code of a failure.
std::string HealthCheck(const std::shared_ptr<grpc::Channel>& channel, const std::string& service);

class HealthWatch {
 public:
  HealthWatch(const std::shared_ptr<grpc::Channel>& channel, const std::string& service);
  ~HealthWatch();
  // Waits for the next status; "END" when the stream has ended.
  std::string Next();

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> reader_;
};

}  // namespace ddl

#endif  // DDL_TESTS_SERVER_TEST_SERVER_H_
