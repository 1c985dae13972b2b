#include "server/engine/completion.h"

#include <algorithm>
#include <utility>

namespace ddl {

Completion::Completion(const GenerateParams& params, const Limits& limits,
                       const Tokenizer* tokenizer)
    : sampling_(params.sampling),
      stopping_(params.stopping),
      logprobs_(params.logprobs),
      vocab_size_(limits.vocab_size),
      end_tokens_(params.stopping.stop_token_ids) {
  const int32_t room = limits.max_context_length - static_cast<int32_t>(params.prompt.size());
  max_tokens_ = std::min(params.stopping.max_tokens, room);
  full_ = params.stopping.max_tokens <= room ? FinishReason::kLength : FinishReason::kContext;
  if (tokenizer != nullptr && !params.stopping.ignore_eos) {
    eos_ = tokenizer->eos_token_id();
    if (eos_.has_value()) end_tokens_.push_back(*eos_);
  }
}

SampleRequest Completion::NextSample() const {
  SampleRequest sample;
  sample.params = sampling_;
  sample.index = num_tokens_;
  sample.vocab_size = vocab_size_;
  if (num_tokens_ < stopping_.min_tokens) sample.banned = end_tokens_;
  sample.logprobs = logprobs_;
  return sample;
}

Completion::Progress Completion::Accept(SampledToken token) {
  const TokenId id = token.id;
  ++num_tokens_;
  cumulative_logprob_ += token.logprob;
  held_.push_back(std::move(token));

  Progress progress;
  progress.end = EndAt(id);
  progress.delta.tokens = std::exchange(held_, {});
  if (progress.end.has_value()) progress.end->cumulative_logprob = cumulative_logprob_;
  return progress;
}

std::optional<CompletionEnd> Completion::EndAt(TokenId id) const {
  CompletionEnd end;
  if (id == eos_) {
    end.finish_reason = FinishReason::kEos;
  } else if (std::ranges::find(stopping_.stop_token_ids, id) != stopping_.stop_token_ids.end()) {
    end.finish_reason = FinishReason::kStop;
    end.matched_token_id = id;
  } else if (num_tokens_ == max_tokens_) {
    end.finish_reason = full_;
  } else {
    return std::nullopt;
  }
  return end;
}

}  // namespace ddl
