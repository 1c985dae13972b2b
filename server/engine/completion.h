#ifndef DDL_SERVER_ENGINE_COMPLETION_H_
#define DDL_SERVER_ENGINE_COMPLETION_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "model/sampler.h"
#include "model/token.h"
#include "model/tokenizer.h"
#include "server/engine/output_text.h"
#include "server/engine/request.h"

namespace ddl {

// One completion of a Generate: says how the next token is to be drawn, takes it, and tells what
// to deliver and whether that was the end.
class Completion {
 public:
  struct Limits {
    int32_t max_context_length = 0;  // tokens, prompt and completion together
    TokenId vocab_size = 0;          // ids at or past it are never drawn
  };
  struct Progress {
    CompletionDelta delta;             // may be empty: everything is held back
    std::optional<CompletionEnd> end;  // the delta is then the last
  };

  // `tokenizer` may be null: no text, and no end token. It must outlive the completion. The text
  // of an end or stop token is not part of the completion's, the token itself is. `index`: of the
  // completion, in [0, n).
  Completion(const GenerateParams& params, int32_t index, const Limits& limits,
             const Tokenizer* tokenizer);

  // How to draw what follows the prompt and the tokens taken so far. Refers to them and to this
  // completion; valid until it is moved or takes a token.
  SampleRequest NextSample(absl::Span<const TokenId> prompt,
                           absl::Span<const TokenId> generated) const;
  // Takes the token drawn for NextSample. Not to be called after the end.
  Progress Accept(SampledToken token);

  int32_t num_tokens() const { return num_tokens_; }

 private:
  std::optional<CompletionEnd> EndAt(TokenId id) const;

  const int32_t index_;
  SamplingParams sampling_;
  bool has_penalties_;
  StoppingParams stopping_;
  int32_t logprobs_;
  TokenId vocab_size_;
  int32_t max_tokens_;               // of the completion, the context's bound included
  FinishReason full_;                // why it ends at max_tokens_
  std::optional<TokenId> eos_;       // none: nothing to stop at
  std::vector<TokenId> end_tokens_;  // end and stop tokens, banned up to min_tokens

  OutputText text_;
  int32_t num_tokens_ = 0;
  double cumulative_logprob_ = 0.0;
  std::vector<SampledToken> held_;  // not delivered yet
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_COMPLETION_H_
