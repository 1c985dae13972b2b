#ifndef DDL_SERVER_ENGINE_COMPLETION_H_
#define DDL_SERVER_ENGINE_COMPLETION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "model/sampler.h"
#include "model/token.h"
#include "model/tokenizer/tokenizer.h"
#include "server/engine/output_text.h"
#include "server/engine/request.h"

namespace ddl {

// One completion of a Generate: says how the next token is to be sampled, takes it, and knows
// whether that was the end and what to deliver.
class Completion {
 public:
  struct Limits {
    int32_t max_context_length = 0;           // tokens, prompt and completion together
    TokenId vocab_size = 0;                   // ids at or past it are never sampled
    absl::Span<const TokenId> eos_token_ids;  // each ends a completion that does not ignore them
  };
  // `tokenizer` may be null: no text. It must outlive the completion. The text of an end or stop
  // token is not part of the completion's, the token itself is. `index`: of the completion, in
  // [0, n).
  Completion(const GenerateParams& params, int32_t index, const Limits& limits,
             const Tokenizer* tokenizer);

  // How to sample what follows the prompt and the tokens generated. Refers to them and to this
  // completion, as long as it is not moved.
  SampleRequest NextSample(absl::Span<const TokenId> prompt,
                           absl::Span<const TokenId> generated) const;
  // Takes the token sampled for NextSample. The end, if this was it; then not to be called again.
  std::optional<CompletionEnd> Accept(SampledToken token);
  // What came since the last call. May be empty: everything is held back. Where no stop string
  // decides anything, the text is made only here.
  CompletionDelta TakeDelta();

  // Whether NextSample depends on which tokens were generated, rather than how many.
  bool depends_on_tokens() const { return has_penalties_; }
  int32_t num_tokens() const { return num_tokens_; }
  // Whether a completion of so many tokens has room for no more.
  bool IsFullAt(int32_t num_tokens) const { return num_tokens == max_tokens_; }

 private:
  std::optional<CompletionEnd> EndAt(TokenId id) const;
  // Puts what was accepted into the delta. The stop string that the text has come to.
  std::optional<std::string> MakeText();

  const int32_t index_;
  SamplingParams sampling_;
  bool has_penalties_;
  StoppingParams stopping_;
  int32_t logprobs_;
  TokenId vocab_size_;
  int32_t max_tokens_;               // of the completion, the context's bound included
  FinishReason full_;                // why it ends at max_tokens_
  std::vector<TokenId> eos_;         // any of them ends it
  std::vector<TokenId> end_tokens_;  // end and stop tokens, banned up to min_tokens

  OutputText text_;
  int32_t num_tokens_ = 0;
  double cumulative_logprob_ = 0.0;
  std::vector<OutputText::Token> pending_;  // accepted, not in text_ yet
  std::vector<SampledToken> held_;          // not in delta_ yet
  CompletionDelta delta_;                   // to be taken
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_COMPLETION_H_
