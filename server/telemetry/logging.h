#ifndef DDL_SERVER_TELEMETRY_LOGGING_H_
#define DDL_SERVER_TELEMETRY_LOGGING_H_

#include <string_view>

// The server logs through spdlog's default logger: spdlog::info(...) and so on. Prompts,
// generated text and keys never go into the log.

namespace ddl {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// kText: "TIME LEVEL MESSAGE". kJson: an object a line, with the members time, level and message,
// or those of RequestLog.
enum class LogFormat { kText, kJson };

// The name of the logger whose messages are, in JSON, members of the line's object.
inline constexpr char kRequestLogger[] = "request";

// Points the default logger at stderr, with lines at or above `level`. What gRPC and protobuf
// have to say goes the same way, at debug level: what matters of it reaches the log or the
// client as a status anyway. Call once, before either is used.
void SetUpLogging(LogLevel level, LogFormat format);

// From now on lines at or above `level`; says so in the log. After SetUpLogging, from any thread.
void ChangeLogLevel(LogLevel level);

}  // namespace ddl

#endif  // DDL_SERVER_TELEMETRY_LOGGING_H_
