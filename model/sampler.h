#ifndef DDL_MODEL_SAMPLER_H_
#define DDL_MODEL_SAMPLER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/kernels/cpu/cpu_kernels.h"
#include "model/token.h"

namespace ddl {

struct LogitBias {
  TokenId id = 0;
  float bias = 0.0f;  // [-100, 100]
};

// How the next token is sampled. A plain value; ranges are checked where requests come in.
struct SamplingParams {
  float temperature = 1.0f;  // [0, 2]; 0 is greedy
  // Filters, of the probabilities after the temperature, in this order. Each sees what the one
  // before has left, as shares of what is left.
  int32_t top_k = -1;  // the k most likely tokens only; -1 is off
  float top_p = 1.0f;  // (0, 1]; the smallest set of tokens that holds this much probability
  float min_p = 0.0f;  // [0, 1]; only tokens at least this probable beside the most probable
  // Applied to the logits, in this order, before the temperature:
  // > 0; of tokens seen, prompt included: a positive logit is divided by it, another multiplied
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;  // [-2, 2]; subtracted for every time a token was generated
  float presence_penalty = 0.0f;   // [-2, 2]; subtracted once for a token that was generated
  std::vector<LogitBias> logit_bias = {};  // added; an id at most once, by ascending id
  uint64_t seed = 0;
};

// One token sampled from one row of logits. What it refers to must outlive the call it is given to.
struct SampleRequest {
  const SamplingParams* params = nullptr;  // null: the defaults
  // Number of tokens the sequence has generated before this one. (seed, index) decide which
  // token it is, so that it is the same in any batch and after a preemption.
  uint64_t index = 0;
  // Ids at or past this are padding rows of the embedding: never sampled, nor among the most likely
  // ones.
  TokenId vocab_size = 0;
  // Never sampled either (end and stop tokens while min_tokens holds).
  absl::Span<const TokenId> banned;
  // What the penalties count; empty when there are none.
  absl::Span<const TokenId> prompt;
  absl::Span<const TokenId> generated;
  // -1: no logprobs; 0: the chosen token's; k > 0: the k most likely tokens' as well.
  int32_t logprobs = -1;
};

struct TokenLogprob {
  TokenId id = 0;
  float logprob = 0.0f;
};

struct SampledToken {
  TokenId id = 0;
  // Natural logarithm of the probability that the model gives the token: log softmax over all of
  // its logits, padding rows' included as in the official code, before penalties, bias,
  // temperature, filters and bans, so that it equals what scoring the same text reports. Always
  // computed.
  float logprob = 0.0f;
  std::vector<TokenLogprob> top;  // most likely first, as many as asked
};

// Samples a token from `logits` [vocab]. Ties go to the lower id. Logits must be finite. `kernels`
// sum: results of two instruction sets may differ in the last bits.
SampledToken Sample(const kernels::CpuKernels& kernels, absl::Span<const float> logits,
                    const SampleRequest& request);

// What the model gives a token that is there already: `logprob` and `top` bit for bit as Sample
// reports them for the same row and vocab_size. A target at or past vocab_size has no probability:
// minus infinity.
SampledToken Score(const kernels::CpuKernels& kernels, absl::Span<const float> logits,
                   TokenId target, TokenId vocab_size, int32_t logprobs);

}  // namespace ddl

#endif  // DDL_MODEL_SAMPLER_H_
