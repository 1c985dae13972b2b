#ifndef DDL_SERVER_CONVERSION_REQUEST_CHECKS_H_
#define DDL_SERVER_CONVERSION_REQUEST_CHECKS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "ddl/v1/inference.pb.h"
#include "model/tokenizer/tokenizer.h"
#include "server/conversion/api_calls.h"

// From the messages of proto/ddl/v1 to checked calls. What comes out is fit for Engine::Submit;
// what is refused is INVALID_ARGUMENT with a violation for every field that is wrong, or
// FAILED_PRECONDITION, naming the field, for what takes a tokenizer (text in, text out) where the
// model has none.

namespace ddl {

absl::StatusOr<GenerateCall> ParseGenerate(const v1::GenerateRequest& request,
                                           const RequestLimits& limits);
absl::StatusOr<EmbedCall> ParseEmbed(const v1::EmbedRequest& request, const RequestLimits& limits);
absl::StatusOr<ScoreCall> ParseScore(const v1::ScoreRequest& request, const RequestLimits& limits);

// The texts, tokenized.
absl::StatusOr<std::vector<std::vector<Tokenizer::Token>>> ParseTokenize(
    const v1::TokenizeRequest& request, const RequestLimits& limits);
absl::StatusOr<DetokenizeCall> ParseDetokenize(const v1::DetokenizeRequest& request,
                                               const RequestLimits& limits);

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_REQUEST_CHECKS_H_
