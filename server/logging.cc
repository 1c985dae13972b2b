#include "server/logging.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <string>

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

}  // namespace

void ChangeLogLevel(LogLevel level) {
  // At the more talkative of the two levels, so that the log shows where it becomes quiet.
  const spdlog::level::level_enum next = SpdlogLevel(level);
  spdlog::set_level(std::min(next, spdlog::default_logger()->level()));
  spdlog::log(std::max(spdlog::level::info, spdlog::default_logger()->level()), "log_level={}",
              Name(level));
  spdlog::set_level(next);
}

void SetUpLogging(LogLevel level) {
  auto logger = std::make_shared<spdlog::logger>("ddl_server",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc);
  logger->set_level(SpdlogLevel(level));
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));

  gpr_set_log_function(LogForGrpc);
  google::protobuf::SetLogHandler(LogForProtobuf);
}

}  // namespace ddl
