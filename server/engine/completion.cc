#include "server/engine/completion.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

namespace ddl {

Completion::Completion(const GenerateParams& params, int32_t index, const Limits& limits,
                       const Tokenizer* tokenizer)
    : index_(index),
      sampling_(params.sampling),
      has_penalties_(sampling_.repetition_penalty != 1.0f || sampling_.frequency_penalty != 0.0f ||
                     sampling_.presence_penalty != 0.0f),
      stopping_(params.stopping),
      logprobs_(params.logprobs),
      vocab_size_(limits.vocab_size),
      end_tokens_(params.stopping.stop_token_ids),
      text_(tokenizer, {.skip_special_tokens = params.skip_special_tokens,
                        .stop = params.stopping.stop,
                        .include_stop_str_in_output = params.stopping.include_stop_str_in_output}) {
  sampling_.seed += static_cast<uint64_t>(index);
  const int32_t room = limits.max_context_length - static_cast<int32_t>(params.prompt.size());
  max_tokens_ = std::min(params.stopping.max_tokens, room);
  full_ = params.stopping.max_tokens <= room ? FinishReason::kLength : FinishReason::kContext;
  if (tokenizer != nullptr && !params.stopping.ignore_eos) {
    eos_ = tokenizer->eos_token_id();
    if (eos_.has_value()) end_tokens_.push_back(*eos_);
  }
}

SampleRequest Completion::NextSample(absl::Span<const TokenId> prompt,
                                     absl::Span<const TokenId> generated) const {
  SampleRequest sample;
  sample.params = &sampling_;
  sample.index = num_tokens_;
  sample.vocab_size = vocab_size_;
  if (num_tokens_ < stopping_.min_tokens) sample.banned = end_tokens_;
  if (has_penalties_) {
    sample.prompt = prompt;
    sample.generated = generated;
  }
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
  const bool ends_by_token =
      progress.end.has_value() && (progress.end->finish_reason == FinishReason::kEos ||
                                   progress.end->matched_token_id.has_value());
  OutputText::Piece piece = text_.Append({.id = id,
                                          .in_text = !ends_by_token,
                                          .may_stop = num_tokens_ >= stopping_.min_tokens,
                                          .last = progress.end.has_value()});
  if (piece.matched_stop.has_value()) {
    progress.end = CompletionEnd{.finish_reason = FinishReason::kStop,
                                 .matched_stop_str = std::move(piece.matched_stop),
                                 .matched_token_id = std::nullopt};
  }
  progress.delta.index = index_;
  progress.delta.text = std::move(piece.text);
  const auto released = held_.begin() + static_cast<ptrdiff_t>(piece.num_tokens);
  progress.delta.tokens.assign(std::make_move_iterator(held_.begin()),
                               std::make_move_iterator(released));
  held_.erase(held_.begin(), released);
  if (progress.end.has_value()) {
    progress.end->index = index_;
    progress.end->cumulative_logprob = cumulative_logprob_;
  }
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
