#include "server/telemetry/trace_context.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/random_ids.h"

namespace ddl {
namespace {

bool IsLowerHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsId(std::string_view text) {
  return IsLowerHex(text) && text.find_first_not_of('0') != std::string_view::npos;
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view traceparent) {
  // VERSION-TRACE-PARENT-FLAGS, 2, 32, 16 and 2 digits.
  constexpr size_t kLength = 2 + 1 + 32 + 1 + 16 + 1 + 2;
  if (traceparent.size() < kLength) return std::nullopt;
  const std::string_view version = traceparent.substr(0, 2);
  const std::string_view trace_id = traceparent.substr(3, 32);
  const std::string_view parent_id = traceparent.substr(36, 16);
  const std::string_view flags = traceparent.substr(53, 2);
  if (traceparent[2] != '-' || traceparent[35] != '-' || traceparent[52] != '-' ||
      !IsLowerHex(version) || version == "ff" || !IsId(trace_id) || !IsId(parent_id) ||
      !IsLowerHex(flags)) {
    return std::nullopt;
  }
  const std::string_view rest = traceparent.substr(kLength);
  if (!rest.empty() && (version == "00" || rest[0] != '-')) return std::nullopt;
  return TraceContext{.trace_id = std::string(trace_id),
                      .parent_id = std::string(parent_id),
                      .span_id = NewSpanId(),
                      .flags = std::string(flags)};
}

std::string FormatTraceparent(const TraceContext& trace) {
  return absl::StrCat("00-", trace.trace_id, "-", trace.span_id, "-", trace.flags);
}

}  // namespace ddl
