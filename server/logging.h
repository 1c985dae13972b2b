#ifndef DDL_SERVER_LOGGING_H_
#define DDL_SERVER_LOGGING_H_

#include <string_view>

// The server logs through spdlog's default logger: spdlog::info(...) and so on. Prompts and
// generated text never go into the log.

namespace ddl {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Points the default logger at stderr, with lines at or above `level`. What gRPC and protobuf
// have to say goes the same way, at debug level: what matters of it reaches the log or the
// client as a status anyway. Call once, before either is used.
void SetUpLogging(LogLevel level);

// From now on lines at or above `level`; says so in the log. After SetUpLogging, from any thread.
void ChangeLogLevel(LogLevel level);

}  // namespace ddl

#endif  // DDL_SERVER_LOGGING_H_
