#ifndef DDL_SERVER_CONVERSION_API_CALLS_H_
#define DDL_SERVER_CONVERSION_API_CALLS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "model/tokenizer/tokenizer.h"
#include "server/engine/request.h"

// The calls of proto/ddl/v1, checked, as the server's own values: what stands between
// request_checks.h, the engine and responses.h. No protobuf here.

namespace ddl {

inline constexpr size_t kMaxRequestIdBytes = 128;

// What requests to one model are checked against, and turned into tokens by.
struct RequestLimits {
  std::string model;  // its name, for messages
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;     // d
  int64_t value_channels = 1;  // dv
  int64_t num_layers = 1;
  bool has_delta_rule = true;         // else there are no ddl_stats
  int32_t max_context_length = 0;     // tokens, prompt and completion
  int32_t max_client_batch_size = 0;  // inputs per call
  int32_t default_max_tokens = 0;
  const Tokenizer* tokenizer = nullptr;  // null: token ids only
};

// What responses say about the model.
struct ModelIdentity {
  std::string name;
  std::string version;
  std::string system_fingerprint;
};

// Which of the DDL statistics an answer holds.
struct StatsChoice {
  bool gates = false;  // mean, least, most ... of beta
  bool gates_by_token = false;
  bool update_norms = false;

  bool any() const { return gates || gates_by_token || update_norms; }
};

// A Generate or GenerateStream that may be submitted, and what its answer needs to know.
struct GenerateCall {
  Request request;  // deadline not set; params are GenerateParams
  int32_t stream_interval = 1;
  bool with_logprobs = false;
  std::optional<std::string> echo;  // the prompt's text, to go before each completion's
  StatsChoice stats;
  absl::Duration tokenize;

  const GenerateParams& params() const { return std::get<GenerateParams>(request.params); }
};

enum class EncodingFormat { kFloat, kBytesF32Le, kBytesBf16Le };

struct EmbedCall {
  Request request;  // deadline not set; params are EmbedParams
  EncodingFormat encoding = EncodingFormat::kFloat;
  std::vector<bool> truncated;  // by input
  StatsChoice stats;
  absl::Duration tokenize;

  const EmbedParams& params() const { return std::get<EmbedParams>(request.params); }
};

struct ScoreCall {
  Request request;  // deadline not set; params are ScoreParams

  const ScoreParams& params() const { return std::get<ScoreParams>(request.params); }
};

struct DetokenizeCall {
  std::vector<std::vector<TokenId>> sequences;
  bool skip_special_tokens = true;
};

// Everything a completion delivered, deltas put together.
struct CompletionResult {
  std::string text;
  std::vector<SampledToken> tokens;
};

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_API_CALLS_H_
