#ifndef DDL_SERVER_TELEMETRY_RPC_LABELS_H_
#define DDL_SERVER_TELEMETRY_RPC_LABELS_H_

#include <string_view>

namespace ddl {

// Our RPCs, as the label `method` names them.
enum class Method {
  kGenerate,
  kGenerateStream,
  kEmbed,
  kScore,
  kTokenize,
  kDetokenize,
  kListModels,
  kGetModelInfo,
  kGetServerInfo,
};
inline constexpr int kNumMethods = 9;
std::string_view MethodName(Method method);

// Label `model` of calls that name a model that is not served: labels must not grow at a
// client's will.
inline constexpr std::string_view kUnknownModel = "unknown";

// gRPC's status codes, as the label `code` names them: "OK", "CANCELLED" ...
inline constexpr int kNumStatusCodes = 17;
std::string_view StatusCodeName(int code);

}  // namespace ddl

#endif  // DDL_SERVER_TELEMETRY_RPC_LABELS_H_
