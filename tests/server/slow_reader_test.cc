#include <gmock/gmock.h>
#include <grpcpp/support/sync_stream.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/byte_tokenizer.h"
#include "tests/server/engine/engine_fixture.h"
#include "tests/server/test_server.h"

// Streams whose client does not read, over real connections: what gRPC and the kernel hold in
// between is theirs to choose, so that these tests make more than that.

namespace ddl {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Tokens of a stream that no buffer on the way can hold: an event for each, of 60 bytes.
constexpr int kManyTokens = 8000;

TestServer::Options LongStreams() {
  TestServer::Options options;
  options.max_context_length = kManyTokens + 1;
  options.runner.kv_block_size = 256;  // the fake looks at every block of a sequence
  options.runner.kv_num_blocks = 2 * kManyTokens / options.runner.kv_block_size;
  return options;
}

// A stream of kManyTokens, of which the client has read the start.
class UnreadStream {
 public:
  UnreadStream(TestServer* server, v1::GenerateRequest request) {
    request.mutable_sampling()->set_temperature(0);
    reader_ = server->inference().GenerateStream(&context_, request);
    v1::GenerateStreamResponse event;
    EXPECT_TRUE(reader_->Read(&event));
    EXPECT_TRUE(event.has_start());
    streamed_.events.push_back(event);
  }
  ~UnreadStream() {
    if (reader_ == nullptr) return;
    context_.TryCancel();
    ReadOn();
  }
  // Reads to the end.
  const Streamed& ReadOn() {
    for (v1::GenerateStreamResponse event; reader_->Read(&event);) {
      streamed_.events.push_back(event);
    }
    streamed_.status = reader_->Finish();
    reader_ = nullptr;
    return streamed_;
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> reader_;
  Streamed streamed_;
};

// Waits until the only stream is paused for good. The fake model is faster than answers can be
// made of what it samples, so that a stream may also be paused until they have been.
ScrapedMetrics AwaitStall(TestServer* server) {
  constexpr int kLooks = 20;
  int looks = 0;
  double generated = -1;
  return server->AwaitMetrics([&](const ScrapedMetrics& metrics) {
    const double before = std::exchange(generated, metrics.Sum("ddl_generated_tokens_total"));
    const bool paused = metrics.Sum("ddl_sequences_paused", {"reason=\"slow_reader\""}) == 1;
    looks = paused && before == generated ? looks + 1 : 0;
    return looks == kLooks;
  });
}

TEST(SlowReaderTest, IsPausedAndGoesOn) {
  TestServer server(LongStreams());
  const std::vector<TokenId> prompt = {1, 2, 3};
  UnreadStream stream(&server, GreedyRequest(prompt, kManyTokens - 3));
  const ScrapedMetrics stalled = AwaitStall(&server);
  EXPECT_GE(stalled.Sum("ddl_stream_stalls_total"), 1);
  EXPECT_LT(stalled.Sum("ddl_generated_tokens_total"), kManyTokens - 3);
  EXPECT_EQ(stalled.Sum("ddl_requests_running"), 1);

  // Others are served meanwhile, and it makes nothing.
  v1::GenerateResponse other;
  ASSERT_TRUE(Generate(server, GreedyRequest({9}, 50), &other).ok());
  EXPECT_EQ(server.metrics().Sum("ddl_generated_tokens_total"),
            stalled.Sum("ddl_generated_tokens_total") + 50);

  const Streamed& streamed = stream.ReadOn();
  ASSERT_TRUE(streamed.status.ok()) << streamed.status.error_message();
  EXPECT_EQ(streamed.TokenIds(),
            ExpectedTokens(prompt, kManyTokens - 3, {.temperature = 0}, kByteTokenizerVocabSize));
  EXPECT_TRUE(streamed.events.back().has_end());
  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_sequences_paused"), 0);
  EXPECT_EQ(metrics.Sum("ddl_request_finished_total", {"finish_reason=\"slow_reader\""}), 0);
  EXPECT_EQ(metrics.Sum("ddl_wasted_tokens_total", {"reason=\"error\""}), 0);
}

TEST(SlowReaderTest, CanBeCancelledWhilePaused) {
  TestServer server(LongStreams());
  {
    UnreadStream stream(&server, GreedyRequest({1}, kManyTokens - 3));
    AwaitStall(&server);
  }
  const ScrapedMetrics metrics = server.AwaitMetrics([](const ScrapedMetrics& scraped) {
    return scraped.Sum("ddl_request_finished_total", {"finish_reason=\"cancel\""}) == 1;
  });
  EXPECT_EQ(metrics.Sum("ddl_kv_blocks", {"state=\"used\""}), 0);
  EXPECT_EQ(metrics.Sum("ddl_wasted_tokens_total", {"reason=\"cancel\""}),
            metrics.Sum("ddl_generated_tokens_total"));
}

// A client that reads again, in time, is told why its stream has ended.
TEST(SlowReaderTest, EndsWithSlowReader) {
  TestServer::Options options = LongStreams();
  options.config.engine.slow_reader_timeout = absl::Seconds(2);
  TestServer server(options);
  UnreadStream stream(&server, GreedyRequest({1, 2, 3}, kManyTokens - 3));
  server.AwaitMetrics([](const ScrapedMetrics& scraped) {
    return scraped.Sum("ddl_request_finished_total", {"finish_reason=\"slow_reader\""}) == 1;
  });
  const Streamed& streamed = stream.ReadOn();
  EXPECT_EQ(streamed.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
      << streamed.status.error_message();
  EXPECT_EQ(Decode(streamed.status).reason, "SLOW_READER");
  EXPECT_THAT(streamed.Shape(), Not(HasSubstr("E")));
  // What had been taken before is the beginning of what it would have been.
  const std::vector<TokenId> ids = streamed.TokenIds();
  EXPECT_EQ(ids, ExpectedTokens({1, 2, 3}, static_cast<int>(ids.size()), {.temperature = 0},
                                kByteTokenizerVocabSize));
  const ScrapedMetrics metrics = server.metrics();
  EXPECT_EQ(metrics.Sum("ddl_requests_total",
                        {"method=\"GenerateStream\"", "code=\"RESOURCE_EXHAUSTED\""}),
            1);
  EXPECT_EQ(metrics.Sum("ddl_sequences_paused"), 0);
  EXPECT_EQ(metrics.Sum("ddl_kv_blocks", {"state=\"used\""}), 0);
  EXPECT_EQ(metrics.Sum("ddl_wasted_tokens_total", {"reason=\"error\""}),
            metrics.Sum("ddl_generated_tokens_total"));
}

struct Unread {
  const char* what;
  int tokens;
  uint32_t stream_interval;
  const char* finish_reason;
  const char* code;
};

// A client that never reads again loses the call, and does not hold the drain.
TEST(SlowReaderTest, CannotHoldTheCallForEver) {
  const Unread rows[] = {
      {"paused, then ended", kManyTokens - 3, 1, "slow_reader", "RESOURCE_EXHAUSTED"},
      // Fewer events than the outbox holds: the engine has made all of it, and gRPC takes no more.
      {"ended well, but not taken", kManyTokens - 3, 500, "length", "CANCELLED"},
  };
  for (const Unread& row : rows) {
    TestServer::Options options = LongStreams();
    options.config.engine.slow_reader_timeout = absl::Milliseconds(100);
    options.config.drain_timeout = absl::Hours(1);
    TestServer server(options);
    v1::GenerateRequest request = GreedyRequest({1, 2, 3}, row.tokens);
    request.set_stream_interval(row.stream_interval);
    request.mutable_logprobs()->set_logprobs(5);  // larger events
    UnreadStream stream(&server, request);
    server.AwaitMetrics([&row](const ScrapedMetrics& metrics) {
      return metrics.Sum("ddl_request_finished_total",
                         {std::string("finish_reason=\"") + row.finish_reason + "\""}) == 1;
    });
    server.RequestStop();
    EXPECT_TRUE(server.AwaitStopped().ok()) << row.what;
    const ScrapedMetrics metrics = server.metrics();
    EXPECT_EQ(metrics.Sum("ddl_requests_total", {std::string("code=\"") + row.code + "\""}), 1)
        << row.what;
    EXPECT_EQ(metrics.Sum("ddl_requests_in_flight"), 0) << row.what;
    EXPECT_FALSE(stream.ReadOn().status.ok()) << row.what;
  }
}

}  // namespace
}  // namespace ddl
