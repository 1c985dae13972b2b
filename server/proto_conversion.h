#ifndef DDL_SERVER_PROTO_CONVERSION_H_
#define DDL_SERVER_PROTO_CONVERSION_H_

#include <grpcpp/support/status.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "ddl/v1/inference.pb.h"
#include "model/model_runner.h"
#include "model/tokenizer.h"
#include "server/engine/request.h"

// Between the messages of proto/ddl/v1 and the values of the engine: the only place that knows
// both, that checks what clients send, and that makes a grpc::Status. What comes out of the
// Parse functions is fit for Engine::Submit; what they refuse is INVALID_ARGUMENT with a
// violation for every field that is wrong, unless said otherwise.

namespace ddl {

// What requests to one model are checked against, and turned into tokens by.
struct RequestLimits {
  std::string model;  // its name, for messages
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;            // numbers in a whole embedding
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

// A Generate or GenerateStream that may be submitted, and what its answer needs to know.
struct GenerateCall {
  Request request;  // deadline not set; params are GenerateParams
  int32_t stream_interval = 1;
  bool with_logprobs = false;
  absl::Duration tokenize;

  const GenerateParams& params() const { return std::get<GenerateParams>(request.params); }
};

enum class EncodingFormat { kFloat, kBytesF32Le, kBytesBf16Le };

struct EmbedCall {
  Request request;  // deadline not set; params are EmbedParams
  EncodingFormat encoding = EncodingFormat::kFloat;
  std::vector<bool> truncated;  // by input
  absl::Duration tokenize;

  const EmbedParams& params() const { return std::get<EmbedParams>(request.params); }
};

// Also FAILED_PRECONDITION for text to a model without a tokenizer, UNIMPLEMENTED for parts of
// the contract that this version does not serve, naming the field.
absl::StatusOr<GenerateCall> ParseGenerate(const v1::GenerateRequest& request,
                                           const RequestLimits& limits);
absl::StatusOr<EmbedCall> ParseEmbed(const v1::EmbedRequest& request, const RequestLimits& limits);

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

// `end` must have ended OK. `tokenizer` may be null.
v1::GenerateResponse ToGenerateResponse(const GenerateCall& call, const ModelIdentity& model,
                                        const Tokenizer* tokenizer, const WholeCompletion& whole,
                                        const RequestEnd& end);
// A stream's three kinds of events.
v1::GenerateStreamResponse ToStreamStart(const GenerateCall& call, const ModelIdentity& model);
v1::GenerateStreamResponse ToStreamDelta(const GenerateCall& call, const Tokenizer* tokenizer,
                                         const CompletionDelta& delta);
v1::GenerateStreamResponse ToStreamEnd(const GenerateCall& call, const RequestEnd& end);

// `embeddings` has one for each input, in any order.
v1::EmbedResponse ToEmbedResponse(const EmbedCall& call, const ModelIdentity& model,
                                  const std::vector<InputEmbedding>& embeddings,
                                  const RequestEnd& end);

// The code and message of `status`, with its details as google.rpc.Status for the trailer
// grpc-status-details-bin. Long texts are cut: HTTP/2 headers are small.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The RPC deadline as gRPC gives it; InfiniteFuture for none.
absl::Time ToDeadline(std::chrono::system_clock::time_point deadline);

}  // namespace ddl

#endif  // DDL_SERVER_PROTO_CONVERSION_H_
