#include "server/telemetry/logging.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace ddl {
namespace {

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

const char* Name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "";
}

void LogForGrpc(gpr_log_func_args* args) { spdlog::debug("gRPC: {}", args->message); }

void LogForProtobuf(google::protobuf::LogLevel /*level*/, const char* /*file*/, int /*line*/,
                    const std::string& message) {
  spdlog::debug("protobuf: {}", message);
}

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& line, spdlog::memory_buf_t& out) override {
    const std::string_view payload(line.payload.data(), line.payload.size());
    const absl::string_view level = LevelName(line.level);
    std::string text = absl::StrCat(
        "{\"time\":\"",
        absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromChrono(line.time), absl::UTCTimeZone()),
        "\",\"level\":\"", level, "\",\"message\":");
    if (std::string_view(line.logger_name.data(), line.logger_name.size()) == kRequestLogger) {
      absl::StrAppend(&text, "\"request\",", absl::string_view(payload.data(), payload.size()));
    } else {
      text += nlohmann::json(payload).dump(-1, ' ', /*ensure_ascii=*/false,
                                           nlohmann::json::error_handler_t::replace);
    }
    text += "}\n";
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }

 private:
  static absl::string_view LevelName(spdlog::level::level_enum level) {
    const spdlog::string_view_t name = spdlog::level::to_string_view(level);
    return {name.data(), name.size()};
  }
};

std::unique_ptr<spdlog::formatter> MakeFormatter(LogFormat format) {
  if (format == LogFormat::kJson) return std::make_unique<JsonFormatter>();
  return std::make_unique<spdlog::pattern_formatter>("%Y-%m-%dT%H:%M:%S.%eZ %l %v",
                                                     spdlog::pattern_time_type::utc);
}

}  // namespace

void ChangeLogLevel(LogLevel level) {
  // At the more talkative of the two levels, so that the log shows where it becomes quiet.
  const spdlog::level::level_enum next = SpdlogLevel(level);
  spdlog::set_level(std::min(next, spdlog::default_logger()->level()));
  spdlog::log(std::max(spdlog::level::info, spdlog::default_logger()->level()), "log_level={}",
              Name(level));
  spdlog::set_level(next);
}

void SetUpLogging(LogLevel level, LogFormat format) {
  auto logger = std::make_shared<spdlog::logger>("ddl_server",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_formatter(MakeFormatter(format));
  logger->set_level(SpdlogLevel(level));
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));

  gpr_set_log_function(LogForGrpc);
  google::protobuf::SetLogHandler(LogForProtobuf);
}

}  // namespace ddl
