#include "model/tokenizer/pre_tokenizer.h"

#include <string_view>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "model/tokenizer/characters.h"
#include "model/tokenizer/pattern_matches.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

using Word = SplitText::Word;
using Words = std::vector<Word>;

std::string_view TextOf(const AlignedText& text, const Word& word) {
  return std::string_view(text.text()).substr(word.begin, word.end - word.begin);
}

// Appends the words that `spans` of the text from `offset` on make.
void AppendWords(std::vector<PatternSpan> spans, SplitBehavior behavior, bool invert, size_t offset,
                 Words& words) {
  if (invert) {
    for (PatternSpan& span : spans) span.is_match = !span.is_match;
  }
  const auto add = [&](size_t start, size_t end) {
    if (start < end) words.push_back({offset + start, offset + end});
  };
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for (const PatternSpan& span : spans) {
        if (!span.is_match) add(span.start, span.end);
      }
      return;
    case SplitBehavior::kIsolated:
      for (const PatternSpan& span : spans) add(span.start, span.end);
      return;
    case SplitBehavior::kContiguous:
      for (size_t i = 0; i < spans.size();) {
        const size_t first = i;
        while (i < spans.size() && spans[i].is_match == spans[first].is_match) ++i;
        add(spans[first].start, spans[i - 1].end);
      }
      return;
    case SplitBehavior::kMergedWithPrevious:
      for (size_t i = 0; i < spans.size();) {
        const size_t first = i++;
        // Only the first of matches in a row has something before it to join.
        if (i < spans.size() && !spans[first].is_match && spans[i].is_match) ++i;
        add(spans[first].start, spans[i - 1].end);
      }
      return;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = 0; i < spans.size();) {
        const size_t first = i++;
        if (i < spans.size() && spans[first].is_match && !spans[i].is_match) ++i;
        add(spans[first].start, spans[i - 1].end);
      }
      return;
  }
}

// Splits every word at the characters for which `matches` is true.
template <typename Matches>
void SplitAtCharacters(Matches matches, SplitBehavior behavior, SplitText& text) {
  Words words;
  for (const Word& word : text.words) {
    AppendWords(FindCharacters(matches, TextOf(text.text, word)), behavior, /*invert=*/false,
                word.begin, words);
  }
  text.words = std::move(words);
}

absl::Status SplitAtPattern(const Regex& pattern, SplitBehavior behavior, bool invert,
                            SplitText& text) {
  RegexMatcher matcher(pattern);
  Words words;
  for (const Word& word : text.words) {
    auto spans = FindMatches(matcher, TextOf(text.text, word));
    if (!spans.ok()) return spans.status();
    AppendWords(*std::move(spans), behavior, invert, word.begin, words);
  }
  text.words = std::move(words);
  return absl::OkStatus();
}

absl::Status Run(const PreTokenizer::Split& split, SplitText& text) {
  return SplitAtPattern(split.pattern, split.behavior, split.invert, text);
}

absl::Status Run(const PreTokenizer::ByteLevel& byte_level, SplitText& text) {
  if (byte_level.add_prefix_space) {
    AlignedText prefixed(text.text.tracked());
    for (Word& word : text.words) {
      const size_t begin = prefixed.size();
      const bool has_space = text.text.text()[word.begin] == ' ';
      AppendPrefixed(text.text, word.begin, word.end, has_space ? "" : " ", prefixed);
      word = {begin, prefixed.size()};
    }
    text.text = std::move(prefixed);
  }
  if (byte_level.pattern) {
    auto status = SplitAtPattern(*byte_level.pattern, SplitBehavior::kIsolated, false, text);
    if (!status.ok()) return status;
  }
  AlignedText written(text.text.tracked());
  for (Word& word : text.words) {
    const size_t begin = written.size();
    AppendByteLevel(text.text, word.begin, word.end, written);
    word = {begin, written.size()};
  }
  text.text = std::move(written);
  return absl::OkStatus();
}

absl::Status Run(const PreTokenizer::Metaspace& metaspace, SplitText& text) {
  using Prepend = PreTokenizer::Metaspace::Prepend;
  const bool tracked = text.text.tracked();
  AlignedText replaced(tracked);
  for (Word& word : text.words) {
    AlignedText spaceless(tracked);
    for (size_t i = word.begin; i < word.end; ++i) {
      if (text.text.text()[i] == ' ') {
        spaceless.Append(metaspace.replacement, tracked ? text.text.Origin(i, i + 1) : TextSpan());
      } else {
        spaceless.AppendFrom(text.text, i, i + 1);
      }
    }
    const bool is_first = metaspace.prepend == Prepend::kFirst &&
                          text.text.Origin(word.begin, word.begin + 1).start == 0;
    const bool prepends = metaspace.prepend == Prepend::kAlways || is_first;
    const bool has_it = absl::StartsWith(spaceless.text(), metaspace.replacement);
    const size_t begin = replaced.size();
    AppendPrefixed(spaceless, 0, spaceless.size(), prepends && !has_it ? metaspace.replacement : "",
                   replaced);
    word = {begin, replaced.size()};
  }
  text.text = std::move(replaced);
  if (!metaspace.split) return absl::OkStatus();
  size_t position = 0;
  const char32_t replacement = TakeCharacter(metaspace.replacement, position);
  SplitAtCharacters([&](char32_t c) { return c == replacement; }, SplitBehavior::kMergedWithNext,
                    text);
  return absl::OkStatus();
}

absl::Status Run(const PreTokenizer::Digits& digits, SplitText& text) {
  SplitAtCharacters(
      IsNumeric, digits.individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, text);
  return absl::OkStatus();
}

absl::Status Run(const PreTokenizer::Punctuation& punctuation, SplitText& text) {
  SplitAtCharacters(IsPunctuation, punctuation.behavior, text);
  return absl::OkStatus();
}

absl::Status Run(const PreTokenizer::WhitespaceSplit&, SplitText& text) {
  SplitAtCharacters(IsWhiteSpace, SplitBehavior::kRemoved, text);
  return absl::OkStatus();
}

absl::Status Run(const PreTokenizer::CharDelimiterSplit& split, SplitText& text) {
  SplitAtCharacters([&](char32_t c) { return c == split.delimiter; }, SplitBehavior::kRemoved,
                    text);
  return absl::OkStatus();
}

}  // namespace

const char PreTokenizer::kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

SplitText::SplitText(AlignedText whole) : text(std::move(whole)) {
  if (!text.empty()) words.push_back({0, text.size()});
}

bool PreTokenizer::needs_origins() const {
  for (const Step& step : steps_) {
    const auto* metaspace = std::get_if<Metaspace>(&step);
    if (metaspace != nullptr && metaspace->prepend == Metaspace::Prepend::kFirst) return true;
  }
  return false;
}

absl::Status PreTokenizer::Run(SplitText& text) const {
  for (const Step& step : steps_) {
    const auto status = std::visit([&](const auto& kind) { return ddl::Run(kind, text); }, step);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace ddl
