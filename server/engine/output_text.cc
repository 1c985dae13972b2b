#include "server/engine/output_text.h"

#include <algorithm>
#include <utility>

namespace ddl {

OutputText::OutputText(const Tokenizer* tokenizer, Options options) : options_(std::move(options)) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer, options_.skip_special_tokens);
}

OutputText::Piece OutputText::Append(const Token& token) {
  if (decoder_.has_value()) {
    if (token.in_text) window_ += decoder_->Append(token.id);
    if (token.last) window_ += decoder_->Finish();
  }
  token_ends_.push_back(num_released_ + window_.size());

  Piece piece;
  if (const std::optional<Match> match = token.may_stop ? FindStop() : std::nullopt) {
    const size_t kept =
        match->begin + (options_.include_stop_str_in_output ? match->stop->size() : 0);
    piece.text = window_.substr(0, kept);
    piece.num_tokens = ReleaseTokens(/*all=*/true);
    piece.matched_stop = *match->stop;
    return piece;
  }
  const size_t held = token.last || !token.may_stop ? 0 : PossibleStopBytes();
  piece.text = window_.substr(0, window_.size() - held);
  window_.erase(0, piece.text.size());
  num_released_ += piece.text.size();
  piece.num_tokens = ReleaseTokens(/*all=*/false);
  return piece;
}

std::optional<OutputText::Match> OutputText::FindStop() const {
  std::optional<Match> first;
  for (const std::string& stop : options_.stop) {
    const size_t begin = window_.find(stop);
    if (begin == std::string::npos || (first.has_value() && first->begin <= begin)) continue;
    first = Match{begin, &stop};
  }
  return first;
}

size_t OutputText::PossibleStopBytes() const {
  size_t longest = 0;
  for (const std::string& stop : options_.stop) {
    for (size_t length = std::min(stop.size() - 1, window_.size()); length > longest; --length) {
      if (window_.compare(window_.size() - length, length, stop, 0, length) == 0) {
        longest = length;
        break;
      }
    }
  }
  return longest;
}

size_t OutputText::ReleaseTokens(bool all) {
  size_t count = 0;
  while (!token_ends_.empty() && (all || token_ends_.front() <= num_released_)) {
    token_ends_.pop_front();
    ++count;
  }
  return count;
}

}  // namespace ddl
