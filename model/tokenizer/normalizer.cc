#include "model/tokenizer/normalizer.h"

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/characters.h"
#include "model/tokenizer/pattern_matches.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

AlignedText Changed(const AlignedText& text, absl::Span<const ChangedCharacter> changed,
                    size_t dropped = 0) {
  AlignedText result(text.tracked());
  result.AppendChanged(text, 0, text.size(), changed, dropped);
  return result;
}

AlignedText Run(UnicodeForm form, const AlignedText& text) {
  return Changed(text, ToUnicodeForm(form, text.text()));
}

AlignedText Run(const Normalizer::Lowercase&, const AlignedText& text) {
  return Changed(text, ToLowerCase(text.text()));
}

AlignedText Run(const Normalizer::StripAccents&, const AlignedText& text) {
  std::vector<ChangedCharacter> kept;
  size_t dropped = 0;  // before the first that is kept
  for (size_t position = 0; position < text.size();) {
    const char32_t character = TakeCharacter(text.text(), position);
    if (!IsCombiningMark(character)) {
      kept.push_back({character, 0});
    } else if (kept.empty()) {
      ++dropped;
    } else {
      --kept.back().change;
    }
  }
  return Changed(text, kept, dropped);
}

AlignedText Run(const Normalizer::ByteLevel&, const AlignedText& text) {
  AlignedText result(text.tracked());
  AppendByteLevel(text, 0, text.size(), result);
  return result;
}

AlignedText Run(const Normalizer::Strip& strip, const AlignedText& text) {
  size_t begin = 0;
  size_t end = text.size();
  while (strip.left && begin < end) {
    size_t next = begin;
    if (!IsWhiteSpace(TakeCharacter(text.text(), next))) break;
    begin = next;
  }
  while (strip.right && end > begin) {
    size_t previous = PreviousCharacter(text.text(), end);
    const size_t start = previous;
    if (!IsWhiteSpace(TakeCharacter(text.text(), previous))) break;
    end = start;
  }
  AlignedText result(text.tracked());
  result.AppendFrom(text, begin, end);
  return result;
}

AlignedText Run(const Normalizer::Prepend& prepend, const AlignedText& text) {
  AlignedText result(text.tracked());
  if (text.empty()) return result;
  AppendPrefixed(text, 0, text.size(), prepend.text, result);
  return result;
}

absl::StatusOr<AlignedText> Run(const Normalizer::Replace& replace, const AlignedText& text) {
  RegexMatcher matcher(replace.pattern);
  const auto spans = FindMatches(matcher, text.text());
  if (!spans.ok()) return spans.status();
  AlignedText result(text.tracked());
  for (const PatternSpan& span : *spans) {
    if (!span.is_match) {
      result.AppendFrom(text, span.start, span.end);
      continue;
    }
    // All that is put in comes from the last character that it replaces.
    TextSpan origin;
    if (text.tracked() && span.end > 0) {
      origin = text.OriginOfCharacterBefore(span.end);
    } else if (text.tracked()) {
      const uint32_t start = text.Origin(0, 1).start;
      origin = {start, start};
    }
    result.Append(replace.content, origin);
  }
  return result;
}

}  // namespace

absl::Status Normalizer::Run(AlignedText& text) const {
  for (const Step& step : steps_) {
    absl::StatusOr<AlignedText> result = std::visit(
        [&](const auto& kind) -> absl::StatusOr<AlignedText> { return ddl::Run(kind, text); },
        step);
    if (!result.ok()) return result.status();
    text = *std::move(result);
  }
  return absl::OkStatus();
}

}  // namespace ddl
