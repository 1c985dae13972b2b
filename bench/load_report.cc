#include "bench/load_report.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ddl::bench {
namespace {

double Milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

std::string CodeName(grpc::StatusCode code) {
  constexpr const char* kNames[] = {"OK",
                                    "CANCELLED",
                                    "UNKNOWN",
                                    "INVALID_ARGUMENT",
                                    "DEADLINE_EXCEEDED",
                                    "NOT_FOUND",
                                    "ALREADY_EXISTS",
                                    "PERMISSION_DENIED",
                                    "RESOURCE_EXHAUSTED",
                                    "FAILED_PRECONDITION",
                                    "ABORTED",
                                    "OUT_OF_RANGE",
                                    "UNIMPLEMENTED",
                                    "INTERNAL",
                                    "UNAVAILABLE",
                                    "DATA_LOSS",
                                    "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(kNames) ? kNames[index] : absl::StrCat("CODE_", index);
}

std::string LoadName(const Load& load) {
  return load.concurrency.has_value() ? absl::StrCat("concurrency ", *load.concurrency)
                                      : absl::StrCat("rate ", *load.rate, "/s");
}

std::string LatencyRow(const std::string& load, const std::string& name, const Summary& summary) {
  if (summary.count == 0) return "";
  return absl::StrFormat("%-16s %-6s %10.2f %10.2f %10.2f %10.2f %10.2f %9d\n", load, name,
                         summary.mean, summary.median, summary.p90, summary.p99, summary.max,
                         summary.count);
}

void AddLatency(const std::string& name, const Summary& summary, nlohmann::json& json) {
  const auto add = [&](const char* statistic, double value) {
    nlohmann::json& entry = json[absl::StrCat(statistic, "_", name, "_ms")];
    if (summary.count > 0) entry = value;
  };
  add("mean", summary.mean);
  add("median", summary.median);
  add("p90", summary.p90);
  add("p99", summary.p99);
  add("max", summary.max);
  json[absl::StrCat(name, "_samples")] = summary.count;
}

}  // namespace

namespace {

// LoadReport::decode_throughput of these streams.
double DecodeThroughput(const std::vector<const CallRecord*>& streams) {
  if (streams.empty()) return 0.0;
  Clock::time_point begin = Clock::time_point::min(), end = Clock::time_point::max();
  for (const CallRecord* call : streams) {
    begin = std::max(begin, call->first_token);
    end = std::min(end, call->last_token);
  }
  if (begin >= end) return 0.0;
  double tokens = 0.0;
  for (const CallRecord* call : streams) {
    // A message's share of the tokens after those of the first.
    const double of_message =
        static_cast<double>(call->output_tokens - 1) / static_cast<double>(call->gaps.size());
    Clock::time_point message = call->first_token;
    for (const Clock::duration gap : call->gaps) {
      message += gap;
      if (message > begin && message <= end) tokens += of_message;
    }
  }
  return tokens / std::chrono::duration<double>(end - begin).count();
}

}  // namespace

int64_t LoadReport::failed() const {
  int64_t sum = 0;
  for (const auto& [code, count] : failures) sum += count;
  return sum;
}

double LoadReport::PerSecond(int64_t count) const {
  return duration_seconds > 0.0 ? static_cast<double>(count) / duration_seconds : 0.0;
}

LoadReport MakeReport(const Load& load, const LoadResult& result) {
  LoadReport report;
  report.load = LoadName(load);
  report.unfinished = result.unfinished;
  report.stopped = result.stopped;
  report.unreachable = result.unreachable;
  report.duration_seconds = std::chrono::duration<double>(result.elapsed).count();
  report.largest_lag_ms = Milliseconds(result.largest_lag);
  report.warmup_failures = result.warmup_failures;
  report.warmup_inputs = result.warmup_inputs;
  report.warmup_input_tokens = result.warmup_input_tokens;
  report.warmup_output_tokens = result.warmup_output_tokens;

  std::vector<double> ttft, tpot, itl, e2el, embed_latency;
  std::vector<const CallRecord*> streams;
  for (const CallRecord& call : result.calls) {
    if (call.code != grpc::StatusCode::OK) {
      if (report.failures.empty()) report.first_failure = call.message;
      ++report.failures[CodeName(call.code)];
      continue;
    }
    ++report.completed;
    const double latency = Milliseconds(call.end - call.start);
    if (call.kind == RequestKind::kEmbed) {
      ++report.completed_embeds;
      report.embed_inputs += call.inputs;
      report.embed_input_tokens += call.input_tokens;
      embed_latency.push_back(latency);
      continue;
    }
    report.generate_input_tokens += call.input_tokens;
    report.output_tokens += call.output_tokens;
    e2el.push_back(latency);
    if (call.kind == RequestKind::kUnary) {
      ++report.completed_unary;
      continue;
    }
    ++report.completed_streams;
    streams.push_back(&call);
    if (call.output_tokens > 0) ttft.push_back(Milliseconds(call.first_token - call.start));
    if (call.output_tokens > 1) {
      tpot.push_back(Milliseconds(call.last_token - call.first_token) /
                     static_cast<double>(call.output_tokens - 1));
    }
    for (const Clock::duration gap : call.gaps) itl.push_back(Milliseconds(gap));
  }
  report.decode_throughput = DecodeThroughput(streams);
  report.ttft = Summarize(std::move(ttft));
  report.tpot = Summarize(std::move(tpot));
  report.itl = Summarize(std::move(itl));
  report.e2el = Summarize(std::move(e2el));
  report.embed_latency = Summarize(std::move(embed_latency));
  return report;
}

std::string Table(absl::Span<const LoadReport> reports) {
  std::string text =
      absl::StrFormat("%-16s %9s %7s %9s %9s %9s %9s %10s %10s\n", "load", "requests", "failed",
                      "seconds", "input tok", "output tok", "req/s", "out tok/s", "tokens/s");
  for (const LoadReport& report : reports) {
    absl::StrAppendFormat(
        &text, "%-16s %9d %7d %9.2f %9d %10d %9.2f %10.1f %10.1f\n", report.load, report.completed,
        report.failed(), report.duration_seconds, report.input_tokens(), report.output_tokens,
        report.PerSecond(report.completed), report.PerSecond(report.output_tokens),
        report.PerSecond(report.input_tokens() + report.output_tokens));
  }
  absl::StrAppendFormat(&text, "\n%-16s %-6s %10s %10s %10s %10s %10s %9s\n", "latency (ms)", "",
                        "mean", "median", "p90", "p99", "max", "samples");
  for (const LoadReport& report : reports) {
    absl::StrAppend(&text, LatencyRow(report.load, "TTFT", report.ttft),
                    LatencyRow(report.load, "TPOT", report.tpot),
                    LatencyRow(report.load, "ITL", report.itl),
                    LatencyRow(report.load, "E2EL", report.e2el),
                    LatencyRow(report.load, "Embed", report.embed_latency));
  }
  for (const LoadReport& report : reports) {
    if (report.completed_embeds > 0) {
      absl::StrAppendFormat(&text, "\n%s: %d embeds of %d inputs, %.1f inputs/s, %.1f tokens/s\n",
                            report.load, report.completed_embeds, report.embed_inputs,
                            report.PerSecond(report.embed_inputs),
                            report.PerSecond(report.embed_input_tokens));
    }
    for (const auto& [code, count] : report.failures) {
      absl::StrAppendFormat(&text, "\n%s: %d failed with %s (the first failure: %s)\n", report.load,
                            count, code, report.first_failure);
    }
    if (report.stopped) {
      absl::StrAppendFormat(&text,
                            "\n%s: stopped; %d requests were in flight and are not counted\n",
                            report.load, report.unfinished);
    }
  }
  return text;
}

nlohmann::json ToJson(const LoadReport& report) {
  nlohmann::json json = {
      {"load", report.load},
      {"completed", report.completed},
      {"failed", report.failed()},
      {"failures_by_code", report.failures},
      {"unfinished", report.unfinished},
      {"stopped", report.stopped},
      {"server_unreachable", report.unreachable},
      {"duration", report.duration_seconds},
      {"largest_dispatch_lag_ms", report.largest_lag_ms},
      {"total_input_tokens", report.input_tokens()},
      {"total_output_tokens", report.output_tokens},
      {"request_throughput", report.PerSecond(report.completed)},
      {"output_throughput", report.PerSecond(report.output_tokens)},
      {"total_token_throughput", report.PerSecond(report.input_tokens() + report.output_tokens)},
      {"decode_throughput", report.decode_throughput},
      {"completed_streams", report.completed_streams},
      {"completed_unary", report.completed_unary},
      {"completed_embeds", report.completed_embeds},
      {"generate_input_tokens", report.generate_input_tokens},
      {"embed_input_tokens", report.embed_input_tokens},
      {"embed_inputs", report.embed_inputs},
      {"embed_input_throughput", report.PerSecond(report.embed_inputs)},
      {"warmup",
       {{"failed", report.warmup_failures},
        {"embed_inputs", report.warmup_inputs},
        {"input_tokens", report.warmup_input_tokens},
        {"output_tokens", report.warmup_output_tokens}}},
  };
  AddLatency("ttft", report.ttft, json);
  AddLatency("tpot", report.tpot, json);
  AddLatency("itl", report.itl, json);
  AddLatency("e2el", report.e2el, json);
  AddLatency("embed", report.embed_latency, json);
  return json;
}

}  // namespace ddl::bench
