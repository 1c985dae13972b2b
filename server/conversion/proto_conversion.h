#ifndef DDL_SERVER_CONVERSION_PROTO_CONVERSION_H_
#define DDL_SERVER_CONVERSION_PROTO_CONVERSION_H_

#include <grpcpp/support/status.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "ddl/v1/inference.pb.h"
#include "model/model_runner.h"
#include "model/tokenizer/tokenizer.h"
#include "server/engine/request.h"

// Between the messages of proto/ddl/v1 and the values of the engine: the only place that knows
// both, that checks what clients send, and that makes a grpc::Status. What comes out of the
// Parse functions is fit for Engine::Submit; what they refuse is INVALID_ARGUMENT with a
// violation for every field that is wrong, unless said otherwise.

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

// The words about the model that answers carry.
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

// Also FAILED_PRECONDITION, naming the field, for what takes a tokenizer (text in, text out)
// where the model has none.
absl::StatusOr<GenerateCall> ParseGenerate(const v1::GenerateRequest& request,
                                           const RequestLimits& limits);
absl::StatusOr<EmbedCall> ParseEmbed(const v1::EmbedRequest& request, const RequestLimits& limits);
absl::StatusOr<ScoreCall> ParseScore(const v1::ScoreRequest& request, const RequestLimits& limits);

// Tokenize and Detokenize whole.
absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                              const RequestLimits& limits);
absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                  const RequestLimits& limits);

// Everything a completion delivered, deltas put together.
struct WholeCompletion {
  std::string text;
  std::vector<SampledToken> tokens;
};

// `wholes`: n, by index. `end` must have ended OK. `tokenizer` may be null.
v1::GenerateResponse ToGenerateResponse(const GenerateCall& call, const ModelIdentity& model,
                                        const Tokenizer* tokenizer, const RequestStart& start,
                                        const std::vector<WholeCompletion>& wholes,
                                        const RequestEnd& end);
// A stream's three kinds of events.
v1::GenerateStreamResponse ToStreamStart(const GenerateCall& call, const ModelIdentity& model,
                                         const Tokenizer* tokenizer, const RequestStart& start);
v1::GenerateStreamResponse ToStreamDelta(const GenerateCall& call, const Tokenizer* tokenizer,
                                         const CompletionDelta& delta);
v1::GenerateStreamResponse ToStreamEnd(const GenerateCall& call, const RequestEnd& end);

// `embeddings` has one for each input, in any order.
v1::EmbedResponse ToEmbedResponse(const EmbedCall& call, const ModelIdentity& model,
                                  const std::vector<InputEmbedding>& embeddings,
                                  const RequestEnd& end);

// `scores` has one for each input, in any order.
v1::ScoreResponse ToScoreResponse(const ScoreCall& call, const Tokenizer* tokenizer,
                                  const std::vector<InputScore>& scores, const RequestEnd& end);

// The code and message of `status`, with its details as google.rpc.Status for the trailer
// grpc-status-details-bin. Long texts are cut: HTTP/2 headers are small.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The RPC deadline as gRPC gives it; InfiniteFuture for none.
absl::Time ToDeadline(std::chrono::system_clock::time_point deadline);

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_PROTO_CONVERSION_H_
