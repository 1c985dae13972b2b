#include "server/telemetry/request_log.h"

#include <spdlog/spdlog.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace ddl {
namespace {

constexpr size_t kMostWaitingLines = 8192;

// Milliseconds with three digits after the point.
double Milliseconds(absl::Duration duration) {
  return std::round(absl::ToDoubleMicroseconds(duration)) / 1000.0;
}

nlohmann::ordered_json ToJson(const RequestLogEntry& entry) {
  nlohmann::ordered_json json;
  json["request_id"] = entry.request_id;
  if (entry.trace.has_value()) {
    json["trace_id"] = entry.trace->trace_id;
    json["span_id"] = entry.trace->span_id;
    json["parent_span_id"] = entry.trace->parent_id;
  }
  json["method"] = std::string(entry.method);
  json["model"] = entry.model;
  if (!entry.key.empty()) json["key"] = entry.key;
  json["peer"] = entry.peer;
  json["code"] = std::string(entry.code);
  if (!entry.reason.empty()) json["reason"] = entry.reason;
  if (!entry.message.empty()) json["error"] = entry.message;
  json["duration_ms"] = Milliseconds(entry.duration);
  if (entry.usage.has_value()) {
    json["prompt_tokens"] = entry.usage->prompt_tokens;
    json["cached_tokens"] = entry.usage->cached_tokens;
    json["completion_tokens"] = entry.usage->completion_tokens;
    json["queue_ms"] = Milliseconds(entry.timings.queue);
    json["prefill_ms"] = Milliseconds(entry.timings.prefill);
    json["decode_ms"] = Milliseconds(entry.timings.decode);
    json["time_to_first_token_ms"] = Milliseconds(entry.timings.time_to_first_token);
  }
  return json;
}

// On one line, whatever a client called its request.
std::string Dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false,
                   nlohmann::ordered_json::error_handler_t::replace);
}

// Without the quotes where nothing could be mistaken without them.
std::string Bare(const nlohmann::ordered_json& value) {
  const std::string text = Dump(value);
  if (!value.is_string() || text.find_first_of(" =\\") != std::string::npos) return text;
  return text.size() > 2 ? text.substr(1, text.size() - 2) : text;
}

}  // namespace

std::string ToText(const RequestLogEntry& entry) {
  std::string text = "request";
  const nlohmann::ordered_json json = ToJson(entry);
  for (const auto& [name, value] : json.items())
    absl::StrAppend(&text, " ", name, "=", Bare(value));
  return text;
}

std::string ToJsonMembers(const RequestLogEntry& entry) {
  const std::string text = Dump(ToJson(entry));
  return text.substr(1, text.size() - 2);
}

RequestLog::RequestLog(LogFormat format)
    : format_(format),
      writer_(std::make_shared<spdlog::details::thread_pool>(kMostWaitingLines, 1)) {
  const std::vector<spdlog::sink_ptr>& sinks = spdlog::default_logger()->sinks();
  logger_ =
      std::make_shared<spdlog::async_logger>(kRequestLogger, sinks.begin(), sinks.end(), writer_,
                                             spdlog::async_overflow_policy::overrun_oldest);
}

RequestLog::~RequestLog() {
  const size_t dropped = writer_->overrun_counter();
  writer_.reset();
  if (dropped > 0) spdlog::warn("{} lines about requests were dropped: nobody read them", dropped);
}

void RequestLog::Write(const RequestLogEntry& entry) {
  // The default logger's level, which may change, is that of all lines.
  if (!spdlog::should_log(spdlog::level::info)) return;
  logger_->info(format_ == LogFormat::kJson ? ToJsonMembers(entry) : ToText(entry));
}

}  // namespace ddl
