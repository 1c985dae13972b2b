#ifndef DDL_SERVER_TELEMETRY_REQUEST_LOG_H_
#define DDL_SERVER_TELEMETRY_REQUEST_LOG_H_

#include <spdlog/async_logger.h>
#include <spdlog/details/thread_pool.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "server/engine/request.h"
#include "server/telemetry/logging.h"
#include "server/telemetry/trace_context.h"

namespace ddl {

// What the log says of an answered call. No key and no text: a caller is named by its key's name.
struct RequestLogEntry {
  std::string request_id;
  std::optional<TraceContext> trace;
  std::string peer;         // as gRPC has it: "ipv4:127.0.0.1:4711"
  std::string key;          // its name; empty without keys, or for none that is known
  std::string_view method;  // "Generate"
  std::string model;
  std::string_view code;    // "OK"
  std::string reason;       // of ErrorInfo; empty: none
  std::string message;      // only of what is the server's fault
  absl::Duration duration;  // from the call's arrival to its answer
  // What the engine did, for calls that it admitted.
  std::optional<RequestUsage> usage;
  RequestTimings timings;
};

// One line a call, beside the default logger's and to the same place. A thread of its own writes
// them, so that a log that is read slowly holds up no answer: when 8192 lines wait, the oldest are
// dropped, and the end of the log says how many. Thread-safe.
class RequestLog {
 public:
  // Writes to where the default logger does now.
  explicit RequestLog(LogFormat format);
  // Returns once everything is written.
  ~RequestLog();

  RequestLog(const RequestLog&) = delete;
  RequestLog& operator=(const RequestLog&) = delete;

  void Write(const RequestLogEntry& entry);

 private:
  const LogFormat format_;
  std::shared_ptr<spdlog::details::thread_pool> writer_;
  std::shared_ptr<spdlog::async_logger> logger_;
};

// The line's content: "request request_id=... method=..." and the members of a JSON object
// without its braces, with the same names. Durations are in milliseconds.
std::string ToText(const RequestLogEntry& entry);
std::string ToJsonMembers(const RequestLogEntry& entry);

}  // namespace ddl

#endif  // DDL_SERVER_TELEMETRY_REQUEST_LOG_H_
