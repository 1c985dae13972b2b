#include "model/tokenizer/post_processor.h"

#include <algorithm>

#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/characters.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

bool IsSpace(char32_t character) {
  return character == ByteCharacter(' ') || IsWhiteSpace(character);
}

// `count` characters after `position`, but not past `last`.
uint32_t Forward(std::string_view text, uint32_t position, uint32_t count, uint32_t last) {
  size_t at = position;
  for (; count > 0 && at < last; --count) at = NextCharacter(text, at);
  return std::min(static_cast<uint32_t>(at), last);
}

// `count` characters before `position`, but not before `first`. Where the text has not so many,
// nothing: `position`.
uint32_t Backward(std::string_view text, uint32_t position, uint32_t count, uint32_t first) {
  size_t at = position;
  for (; count > 0 && at > 0; --count) at = PreviousCharacter(text, at);
  return count > 0 ? position : std::max(static_cast<uint32_t>(at), first);
}

}  // namespace

TokenEnds TokenEnds::Of(std::string_view written) {
  TokenEnds ends;
  for (size_t position = 0; position < written.size();) {
    if (!IsSpace(TakeCharacter(written, position))) break;
    ++ends.leading;
  }
  for (size_t position = written.size(); position > 0;) {
    position = PreviousCharacter(written, position);
    size_t end = position;
    if (!IsSpace(TakeCharacter(written, end))) break;
    ++ends.trailing;
  }
  return ends;
}

PostProcessor::Surround PostProcessor::SpecialTokens() const {
  Surround all;
  for (const Step& step : steps_) {
    const auto* surround = std::get_if<Surround>(&step);
    if (surround == nullptr) continue;
    all.before.insert(all.before.begin(), surround->before.begin(), surround->before.end());
    all.after.insert(all.after.end(), surround->after.begin(), surround->after.end());
  }
  return all;
}

void PostProcessor::Run(std::string_view text, bool add_special_tokens,
                        std::vector<EncodedToken>& tokens) const {
  for (const Step& step : steps_) {
    if (const auto* trim = std::get_if<TrimOffsets>(&step)) {
      for (size_t i = 0; i < tokens.size(); ++i) {
        TextSpan& span = tokens[i].span;
        uint32_t leading = tokens[i].ends.leading;
        const bool is_first = i == 0 || span.start == 0;
        if (is_first && trim->add_prefix_space && leading == 1) leading = 0;
        span.start = Forward(text, span.start, leading, span.end);
        span.end = Backward(text, span.end, tokens[i].ends.trailing, span.start);
      }
    } else if (const auto* surround = std::get_if<Surround>(&step); add_special_tokens) {
      const auto special = [](TokenId id) { return EncodedToken{id, {}, {}}; };
      std::vector<EncodedToken> all;
      all.reserve(surround->before.size() + tokens.size() + surround->after.size());
      for (const TokenId id : surround->before) all.push_back(special(id));
      all.insert(all.end(), tokens.begin(), tokens.end());
      for (const TokenId id : surround->after) all.push_back(special(id));
      tokens = std::move(all);
    }
  }
}

}  // namespace ddl
