#include "server/telemetry/rpc_labels.h"

#include <array>
#include <cstddef>

namespace ddl {
namespace {

constexpr std::array<std::string_view, kNumMethods> kMethodNames = {
    "Generate",   "GenerateStream", "Embed",        "Score",        "Tokenize",
    "Detokenize", "ListModels",     "GetModelInfo", "GetServerInfo"};

constexpr std::array<std::string_view, kNumStatusCodes> kStatusCodeNames = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

}  // namespace

std::string_view MethodName(Method method) { return kMethodNames[static_cast<size_t>(method)]; }

std::string_view StatusCodeName(int code) {
  return code >= 0 && code < kNumStatusCodes ? kStatusCodeNames[code] : "UNKNOWN";
}

}  // namespace ddl
