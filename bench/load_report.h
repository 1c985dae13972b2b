#ifndef DDL_BENCH_LOAD_REPORT_H_
#define DDL_BENCH_LOAD_REPORT_H_

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "bench/load_generator.h"
#include "bench/statistics.h"

namespace ddl::bench {

// What one load gave, in the terms of `vllm bench serve`. Only requests that were answered count,
// but for `failures`.
struct LoadReport {
  std::string load;  // "concurrency 8" or "rate 2.5/s"

  int64_t completed = 0;
  std::map<std::string, int64_t> failures;  // by the status code's name
  std::string first_failure;                // a message, to see what is wrong
  int64_t unfinished = 0;
  bool stopped = false;
  bool unreachable = false;
  double duration_seconds = 0.0;
  double largest_lag_ms = 0.0;

  int64_t completed_streams = 0;
  int64_t completed_unary = 0;
  int64_t completed_embeds = 0;
  int64_t embed_inputs = 0;
  int64_t generate_input_tokens = 0;
  int64_t embed_input_tokens = 0;
  int64_t output_tokens = 0;

  // Milliseconds. TTFT, TPOT and ITL are of streams alone: nobody sees a unary call's tokens come.
  Summary ttft;  // from the start to the first token
  Summary tpot;  // (last token - first token) / (tokens - 1) of each stream
  Summary itl;   // between two messages that carry tokens
  // Tokens a second while all streams were between their first token and their last: decoding
  // alone, without the prompts before. 0 when there was no such time, as of waves of streams.
  double decode_throughput = 0.0;
  Summary e2el;           // from the start to the end, of streams and unary completions
  Summary embed_latency;  // likewise, of embeds

  int64_t warmup_failures = 0;
  int64_t warmup_inputs = 0;
  int64_t warmup_input_tokens = 0;
  int64_t warmup_output_tokens = 0;

  int64_t failed() const;
  int64_t input_tokens() const { return generate_input_tokens + embed_input_tokens; }
  // A second; 0 when nothing was measured.
  double PerSecond(int64_t count) const;
};

LoadReport MakeReport(const Load& load, const LoadResult& result);

// A row of throughput for each load, then a row for each latency of each load.
std::string Table(absl::Span<const LoadReport> reports);

// Keys of `vllm bench serve --save-result` where it has one. A latency without samples is null.
nlohmann::json ToJson(const LoadReport& report);

}  // namespace ddl::bench

#endif  // DDL_BENCH_LOAD_REPORT_H_
