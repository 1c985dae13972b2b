#ifndef DDL_SERVER_TELEMETRY_TRACE_CONTEXT_H_
#define DDL_SERVER_TELEMETRY_TRACE_CONTEXT_H_

#include <optional>
#include <string>
#include <string_view>

namespace ddl {

// A call's place in its client's trace (W3C Trace Context): lower-case hexadecimal digits, no id
// all 0.
struct TraceContext {
  std::string trace_id;   // 32 digits
  std::string parent_id;  // 16: the client's span
  std::string span_id;    // 16: the call's own, generated here
  std::string flags;      // 2
};

// Of the metadata `traceparent`. None where it is missing or not as the standard has it, which
// wants it ignored then. A version after 00 counts as far as 00 goes.
std::optional<TraceContext> ParseTraceparent(std::string_view traceparent);

// The same trace for what follows from the call: its own span is the parent.
std::string FormatTraceparent(const TraceContext& trace);

}  // namespace ddl

#endif  // DDL_SERVER_TELEMETRY_TRACE_CONTEXT_H_
