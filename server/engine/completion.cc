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
  max_tokens_ = params.MaxNewTokens(limits.max_context_length);
  full_ =
      params.stopping.max_tokens == max_tokens_ ? FinishReason::kLength : FinishReason::kContext;
  if (!params.stopping.ignore_eos) {
    eos_.assign(limits.eos_token_ids.begin(), limits.eos_token_ids.end());
    end_tokens_.insert(end_tokens_.end(), eos_.begin(), eos_.end());
  }
}

SampleRequest Completion::NextSample(absl::Span<const TokenId> prompt,
                                     absl::Span<const TokenId> generated) const {
  SampleRequest sample;
  sample.params = &sampling_;
  sample.index = generated.size();
  sample.vocab_size = vocab_size_;
  if (static_cast<int32_t>(generated.size()) < stopping_.min_tokens) sample.banned = end_tokens_;
  if (has_penalties_) {
    sample.prompt = prompt;
    sample.generated = generated;
  }
  sample.logprobs = logprobs_;
  return sample;
}

std::optional<CompletionEnd> Completion::Accept(SampledToken token) {
  const TokenId id = token.id;
  ++num_tokens_;
  cumulative_logprob_ += token.logprob;
  held_.push_back(std::move(token));

  std::optional<CompletionEnd> end = EndAt(id);
  const bool ends_by_token = end.has_value() && (end->finish_reason == FinishReason::kEos ||
                                                 end->matched_token_id.has_value());
  pending_.push_back({.id = id,
                      .in_text = !ends_by_token,
                      .may_stop = num_tokens_ >= stopping_.min_tokens,
                      .last = end.has_value()});
  if (!stopping_.stop.empty()) {
    if (std::optional<std::string> matched = MakeText()) {
      end = CompletionEnd{.finish_reason = FinishReason::kStop,
                          .matched_stop_str = std::move(matched),
                          .matched_token_id = std::nullopt};
    }
  }
  if (end.has_value()) {
    end->index = index_;
    end->cumulative_logprob = cumulative_logprob_;
  }
  return end;
}

std::optional<std::string> Completion::MakeText() {
  std::optional<std::string> matched;
  for (const OutputText::Token& token : pending_) {
    OutputText::Piece piece = text_.Append(token);
    delta_.text += piece.text;
    const auto released = held_.begin() + static_cast<ptrdiff_t>(piece.num_tokens);
    delta_.tokens.insert(delta_.tokens.end(), std::make_move_iterator(held_.begin()),
                         std::make_move_iterator(released));
    held_.erase(held_.begin(), released);
    matched = std::move(piece.matched_stop);
  }
  pending_.clear();
  return matched;
}

CompletionDelta Completion::TakeDelta() {
  MakeText();
  delta_.index = index_;
  return std::exchange(delta_, {});
}

std::optional<CompletionEnd> Completion::EndAt(TokenId id) const {
  CompletionEnd end;
  if (std::find(eos_.begin(), eos_.end(), id) != eos_.end()) {
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
