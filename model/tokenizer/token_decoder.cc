#include "model/tokenizer/token_decoder.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_replace.h"
#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/byte_pair_encoder.h"
#include "model/tokenizer/pattern_matches.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

absl::StatusOr<std::string> Run(const TokenDecoder::Replace& replace, std::string text) {
  RegexMatcher matcher(replace.pattern);
  const auto spans = FindMatches(matcher, text);
  if (!spans.ok()) return spans.status();
  std::string result;
  for (const PatternSpan& span : *spans) {
    result += span.is_match ? replace.content : text.substr(span.start, span.end - span.start);
  }
  return result;
}

absl::StatusOr<std::string> Run(const TokenDecoder::Strip& strip, std::string text) {
  size_t begin = 0;
  for (size_t count = 0; count < strip.start && begin < text.size(); ++count) {
    size_t next = begin;
    if (TakeCharacter(text, next) != strip.content) break;
    begin = next;
  }
  size_t end = text.size();
  for (size_t count = 0; count < strip.stop && end > begin; ++count) {
    const size_t previous = PreviousCharacter(text, end);
    size_t position = previous;
    if (TakeCharacter(text, position) != strip.content) break;
    end = previous;
  }
  return text.substr(begin, end - begin);
}

std::string Replaced(const std::string& text, const std::string& from, const char* to) {
  return from.empty() ? text : absl::StrReplaceAll(text, {{from, to}});
}

}  // namespace

absl::StatusOr<TokenDecoder::Prepared> TokenDecoder::Prepare(std::string_view token) const {
  Prepared result;
  result.text = token;
  for (const TokenStep& step : token_steps_) {
    auto text = std::visit([&](const auto& kind) { return Run(kind, result.text); }, step);
    if (!text.ok()) return text.status();
    result.text = *std::move(text);
  }
  result.bytes = result.text;
  if (std::holds_alternative<ByteLevel>(join_)) {
    if (auto bytes = WrittenBytes(result.text)) result.bytes = *std::move(bytes);
  } else if (std::holds_alternative<ByteFallback>(join_)) {
    if (const auto byte = FallbackByte(result.text)) {
      result.bytes = std::string(1, static_cast<char>(*byte));
      result.is_byte = true;
    }
  } else if (const auto* metaspace = std::get_if<Metaspace>(&join_)) {
    result.bytes = Replaced(result.text, metaspace->replacement, " ");
  } else if (const auto* word = std::get_if<WordSuffix>(&join_)) {
    result.bytes = Replaced(result.text, word->suffix, " ");
  }
  return result;
}

std::string TokenDecoder::Stream::Append(const Prepared& token) {
  std::string text = Joined(token);
  is_first_ = false;
  return strips_.empty() ? text : Stripped(std::move(text), /*is_end=*/false);
}

std::string TokenDecoder::Stream::Finish() {
  std::string text = JoinedEnd();
  pending_.clear();
  return strips_.empty() ? text : Stripped(std::move(text), /*is_end=*/true);
}

std::string TokenDecoder::Stream::Joined(const Prepared& token) {
  const Join& join = decoder_->join_;
  std::string text;
  if (std::holds_alternative<ByteLevel>(join)) {
    pending_ += token.bytes;
    pending_.erase(0, AppendWholeCharacters(pending_, text));
    return text;
  }
  if (std::holds_alternative<ByteFallback>(join)) {
    if (token.is_byte) {
      pending_ += token.bytes;
      return text;
    }
    return TakeFallbackBytes() + token.text;
  }
  if (const auto* metaspace = std::get_if<Metaspace>(&join)) {
    if (!is_first_ || metaspace->keeps_first) return token.bytes;
    return Replaced(token.text, metaspace->replacement, "");
  }
  if (const auto* word = std::get_if<WordSuffix>(&join)) {
    if (!is_first_) text = Replaced(pending_, word->suffix, " ");
    pending_ = token.text;
    return text;
  }
  if (std::holds_alternative<SpaceSeparated>(join) && !is_first_) return " " + token.text;
  return token.text;
}

std::string TokenDecoder::Stream::JoinedEnd() {
  const Join& join = decoder_->join_;
  if (std::holds_alternative<ByteLevel>(join)) {
    return pending_.empty() ? "" : std::string(kReplacementCharacter);
  }
  if (std::holds_alternative<ByteFallback>(join)) return TakeFallbackBytes();
  if (const auto* word = std::get_if<WordSuffix>(&join)) {
    return Replaced(pending_, word->suffix, "");
  }
  return "";
}

std::string TokenDecoder::Stream::TakeFallbackBytes() {
  std::string text = std::move(pending_);
  pending_.clear();
  if (!FindInvalidUtf8(text)) return text;
  const size_t count = text.size();
  text.clear();
  for (size_t i = 0; i < count; ++i) text += kReplacementCharacter;
  return text;
}

std::string TokenDecoder::Stream::Stripped(std::string text, bool is_end) {
  for (size_t i = 0; i < strips_.size(); ++i) {
    const Strip& strip = decoder_->text_steps_[i];
    StripState& state = strips_[i];
    std::string content;
    AppendUtf8(strip.content, content);
    while (!state.started && state.stripped < strip.start && !text.empty()) {
      if (text.compare(0, content.size(), content) == 0) {
        text.erase(0, content.size());
        ++state.stripped;
      } else {
        state.started = true;
      }
    }
    if (strip.stop == 0) continue;
    text.insert(0, state.held);
    state.held.clear();
    size_t end = text.size();
    for (size_t count = 0; count < strip.stop && end >= content.size(); ++count) {
      if (text.compare(end - content.size(), content.size(), content) != 0) break;
      end -= content.size();
    }
    if (!is_end) state.held = text.substr(end);
    text.erase(end);
  }
  return text;
}

}  // namespace ddl
