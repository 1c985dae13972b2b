#ifndef DDL_SERVER_CONVERSION_RESPONSES_H_
#define DDL_SERVER_CONVERSION_RESPONSES_H_

#include <vector>

#include "ddl/v1/inference.pb.h"
#include "model/tokenizer/tokenizer.h"
#include "server/conversion/api_calls.h"
#include "server/engine/request.h"

// From what the engine brought to the messages of proto/ddl/v1.

namespace ddl {

// `results`: n, by index. `end` must have ended OK. `tokenizer` may be null.
v1::GenerateResponse ToGenerateResponse(const GenerateCall& call, const ModelIdentity& model,
                                        const Tokenizer* tokenizer, const RequestStart& start,
                                        const std::vector<CompletionResult>& results,
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

v1::TokenizeResponse ToTokenizeResponse(const std::vector<std::vector<Tokenizer::Token>>& lists,
                                        const Tokenizer& tokenizer);
v1::DetokenizeResponse ToDetokenizeResponse(const DetokenizeCall& call, const Tokenizer& tokenizer);

}  // namespace ddl

#endif  // DDL_SERVER_CONVERSION_RESPONSES_H_
