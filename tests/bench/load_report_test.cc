#include "bench/load_report.h"

#include <chrono>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ddl::bench {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

const Clock::time_point kBegin{std::chrono::seconds(1000)};

Load Closed(int32_t concurrency) {
  Load load;
  load.concurrency = concurrency;
  return load;
}

Load Open(double rate) {
  Load load;
  load.rate = rate;
  return load;
}

// A stream whose messages come at these milliseconds after the beginning.
CallRecord Stream(int start, const std::vector<int>& messages, int end, int64_t output_tokens) {
  CallRecord call;
  call.kind = RequestKind::kStream;
  call.start = kBegin + milliseconds(start);
  call.first_token = kBegin + milliseconds(messages.front());
  call.last_token = kBegin + milliseconds(messages.back());
  for (size_t i = 1; i < messages.size(); ++i) {
    call.gaps.push_back(milliseconds(messages[i] - messages[i - 1]));
  }
  call.end = kBegin + milliseconds(end);
  call.input_tokens = 10;
  call.output_tokens = output_tokens;
  return call;
}

CallRecord Other(RequestKind kind, int start, int end) {
  CallRecord call;
  call.kind = kind;
  call.start = kBegin + milliseconds(start);
  call.end = kBegin + milliseconds(end);
  call.input_tokens = 20;
  if (kind == RequestKind::kUnary) call.output_tokens = 5;
  if (kind == RequestKind::kEmbed) call.inputs = 4;
  return call;
}

CallRecord Failure(grpc::StatusCode code, const std::string& message) {
  CallRecord call = Stream(0, {0}, 1, 99);
  call.code = code;
  call.message = message;
  return call;
}

LoadResult Mixed() {
  LoadResult result;
  result.calls.push_back(Stream(0, {100, 110, 140}, 150, 3));
  result.calls.push_back(Stream(0, {50}, 60, 1));           // one token: no TPOT
  result.calls.push_back(Stream(100, {200, 280}, 290, 5));  // two messages carry five tokens
  result.calls.push_back(Other(RequestKind::kUnary, 0, 400));
  result.calls.push_back(Other(RequestKind::kEmbed, 0, 30));
  result.calls.push_back(Failure(grpc::StatusCode::RESOURCE_EXHAUSTED, "full"));
  result.calls.push_back(Failure(grpc::StatusCode::RESOURCE_EXHAUSTED, "full again"));
  result.calls.push_back(Failure(grpc::StatusCode::INTERNAL, "broken"));
  result.elapsed = std::chrono::seconds(2);
  return result;
}

TEST(LoadReportTest, DecodingIsWhatAllStreamsDoTogether) {
  struct Row {
    const char* name;
    std::vector<CallRecord> calls;
    double tokens_per_second;
  };
  const Row rows[] = {
      {"none", {}, 0.0},
      {"one", {Stream(0, {100, 110, 120}, 121, 3)}, 100.0},
      {"one token", {Stream(0, {100}, 101, 1)}, 0.0},
      // From 15 to 40: three tokens of the first stream, two of the second.
      {"two", {Stream(0, {0, 10, 20, 30, 40}, 41, 5), Stream(0, {15, 25, 35, 45}, 46, 4)}, 200.0},
      {"several in a message",
       {Stream(0, {0, 10, 20, 30, 40}, 41, 5), Stream(0, {15, 25, 35, 45}, 46, 7)},
       280.0},
      {"one after the other", {Stream(0, {0, 10}, 11, 2), Stream(11, {20, 30}, 31, 2)}, 0.0},
      {"a failed one does not count",
       {Stream(0, {100, 110, 120}, 121, 3), Failure(grpc::StatusCode::INTERNAL, "broken")},
       100.0},
      {"nor others",
       {Stream(0, {100, 110, 120}, 121, 3), Other(RequestKind::kUnary, 0, 10),
        Other(RequestKind::kEmbed, 0, 10)},
       100.0},
  };
  for (const Row& row : rows) {
    LoadResult result;
    result.calls = row.calls;
    const LoadReport report = MakeReport(Closed(2), result);
    EXPECT_DOUBLE_EQ(report.decode_throughput, row.tokens_per_second) << row.name;
    EXPECT_EQ(ToJson(report)["decode_throughput"], report.decode_throughput) << row.name;
  }
}

TEST(LoadReportTest, CountsAndLatencies) {
  const LoadReport report = MakeReport(Closed(3), Mixed());
  EXPECT_EQ(report.load, "concurrency 3");
  EXPECT_EQ(report.completed, 5);
  EXPECT_EQ(report.completed_streams, 3);
  EXPECT_EQ(report.completed_unary, 1);
  EXPECT_EQ(report.completed_embeds, 1);
  EXPECT_EQ(report.embed_inputs, 4);
  EXPECT_EQ(report.generate_input_tokens, 50);
  EXPECT_EQ(report.embed_input_tokens, 20);
  EXPECT_EQ(report.output_tokens, 14);
  EXPECT_EQ(report.failures,
            (std::map<std::string, int64_t>{{"INTERNAL", 1}, {"RESOURCE_EXHAUSTED", 2}}));
  EXPECT_EQ(report.first_failure, "full");
  EXPECT_DOUBLE_EQ(report.PerSecond(report.output_tokens), 7.0);

  EXPECT_EQ(report.ttft.count, 3);
  EXPECT_DOUBLE_EQ(report.ttft.min, 50.0);
  EXPECT_DOUBLE_EQ(report.ttft.median, 100.0);
  EXPECT_DOUBLE_EQ(report.ttft.max, 100.0);
  EXPECT_EQ(report.tpot.count, 2);
  EXPECT_DOUBLE_EQ(report.tpot.min, 20.0);  // 80 ms for four tokens, and 40 ms for two
  EXPECT_DOUBLE_EQ(report.tpot.max, 20.0);
  EXPECT_EQ(report.itl.count, 3);
  EXPECT_DOUBLE_EQ(report.itl.median, 30.0);
  EXPECT_DOUBLE_EQ(report.itl.max, 80.0);
  EXPECT_EQ(report.e2el.count, 4);
  EXPECT_DOUBLE_EQ(report.e2el.max, 400.0);
  EXPECT_EQ(report.embed_latency.count, 1);
  EXPECT_DOUBLE_EQ(report.embed_latency.median, 30.0);
}

TEST(LoadReportTest, Json) {
  const nlohmann::json json = ToJson(MakeReport(Open(2.5), Mixed()));
  EXPECT_EQ(json["load"], "rate 2.5/s");
  EXPECT_EQ(json["failed"], 3);
  EXPECT_EQ(json["failures_by_code"]["RESOURCE_EXHAUSTED"], 2);
  EXPECT_EQ(json["total_input_tokens"], 70);
  EXPECT_EQ(json["total_token_throughput"], 42.0);
  EXPECT_EQ(json["median_ttft_ms"], 100.0);
  EXPECT_EQ(json["itl_samples"], 3);
}

TEST(LoadReportTest, NothingMeasuredIsNotZero) {
  const LoadReport report = MakeReport(Closed(1), {});
  EXPECT_TRUE(ToJson(report)["p99_ttft_ms"].is_null());
  EXPECT_EQ(ToJson(report)["request_throughput"], 0.0);
}

TEST(LoadReportTest, TableHasARowForEachLoad) {
  const std::string table =
      Table({MakeReport(Closed(1), Mixed()), MakeReport(Closed(16), Mixed())});
  EXPECT_THAT(table, HasSubstr("\nconcurrency 1            5       3"));
  EXPECT_THAT(table, HasSubstr("\nconcurrency 16           5       3"));
  EXPECT_THAT(table, HasSubstr("concurrency 16   TTFT"));
  EXPECT_THAT(table, HasSubstr("2 failed with RESOURCE_EXHAUSTED"));
  EXPECT_THAT(table, HasSubstr("1 embeds of 4 inputs"));
}

}  // namespace
}  // namespace ddl::bench
