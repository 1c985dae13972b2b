#ifndef DDL_SERVER_CONVERSION_INPUT_TOKENS_H_
#define DDL_SERVER_CONVERSION_INPUT_TOKENS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ddl/v1/inference.pb.h"
#include "model/token.h"
#include "server/conversion/api_calls.h"
#include "server/conversion/field_errors.h"

// From a request's text or token ids to the tokens that are computed.

namespace ddl {

// Adds a violation of `field` unless a call brings 1...max_client_batch_size of something.
bool CheckBatch(const char* field, int size, const RequestLimits& limits, FieldErrors* errors);

// FAILED_PRECONDITION: `field` takes a tokenizer, and the model has none.
absl::Status NoTokenizer(const std::string& field, const RequestLimits& limits);

// The ids. The first that is none of the vocabulary's adds a violation of field[i], and ends them.
std::vector<TokenId> ToTokenIds(const google::protobuf::RepeatedField<uint32_t>& ids,
                                const std::string& field, int64_t vocab_size, FieldErrors* errors);

struct CutTokens {
  std::vector<TokenId> tokens;
  bool truncated = false;
};

struct InputRules {
  Tokenizer::EncodeOptions encoding;
  v1::Truncation truncation;
  std::string truncation_field;    // empty: nothing is ever cut
  int32_t most_tokens = 0;         // that the model can take
  const char* most_tokens_reason;  // for the message
};

// What is wrong with the rules' truncation itself.
void CheckTruncation(const InputRules& rules, FieldErrors* errors);

// The tokens of `input`, cut as `rules` say. FAILED_PRECONDITION for text without a tokenizer.
absl::StatusOr<CutTokens> ToTokens(const v1::Input& input, const std::string& field,
                                   const InputRules& rules, const RequestLimits& limits,
                                   FieldErrors* errors);

// What is wrong with tokens that are to be scored, each after the one before: adds a violation of
// field[i] for the first that is a padding row of the embedding, which no token has.
void CheckScored(const std::vector<TokenId>& tokens, const std::string& field,
                 const RequestLimits& limits, FieldErrors* errors);

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_INPUT_TOKENS_H_
