#include "model/tokenizer/added_tokens.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

#include "absl/strings/string_view.h"

namespace ddl {
namespace {

// Where the character before `position`, which is not 0, begins.
size_t PreviousCharacter(std::string_view text, size_t position) {
  do {
    --position;
  } while (position > 0 && (static_cast<uint8_t>(text[position]) & 0xC0) == 0x80);
  return position;
}

}  // namespace

AddedTokens::AddedTokens(UnicodePattern white_space, UnicodePattern word_character)
    : white_space_(std::move(white_space)), word_character_(std::move(word_character)) {}

absl::StatusOr<AddedTokens> AddedTokens::Create(const std::vector<AddedToken>& tokens) {
  absl::StatusOr<UnicodePattern> white_space = UnicodePattern::WhiteSpace();
  if (!white_space.ok()) return white_space.status();
  absl::StatusOr<UnicodePattern> word_character = UnicodePattern::WordCharacter();
  if (!word_character.ok()) return word_character.status();
  AddedTokens result(*std::move(white_space), *std::move(word_character));
  for (const AddedToken& token : tokens) {
    Add(token, token.normalized ? result.normalized_ : result.verbatim_);
  }
  return result;
}

void AddedTokens::Add(const AddedToken& token, Group& group) {
  group.by_content.insert_or_assign(token.content, token);
  std::vector<size_t>& lengths = group.lengths[static_cast<uint8_t>(token.content[0])];
  const auto place =
      std::lower_bound(lengths.begin(), lengths.end(), token.content.size(), std::greater<>());
  if (place == lengths.end() || *place != token.content.size()) {
    lengths.insert(place, token.content.size());
  }
}

const AddedToken* AddedTokens::Find(const Group& group, std::string_view text, size_t position) {
  for (const size_t length : group.lengths[static_cast<uint8_t>(text[position])]) {
    if (length > text.size() - position) continue;
    const auto token = group.by_content.find(absl::string_view(text.data() + position, length));
    if (token != group.by_content.end()) return &token->second;
  }
  return nullptr;
}

absl::StatusOr<std::vector<AddedTokens::Segment>> AddedTokens::Split(std::string_view text) const {
  if (text.empty()) return std::vector<Segment>();
  std::vector<Segment> segments = {{std::nullopt, 0, text.size()}};
  for (const Group* group : {&verbatim_, &normalized_}) {
    if (group->by_content.empty()) continue;
    std::vector<Segment> finer;
    for (const Segment& segment : segments) {
      if (segment.id) {
        finer.push_back(segment);
      } else if (auto status = SplitSegment(*group, text, segment, finer); !status.ok()) {
        return status;
      }
    }
    segments = std::move(finer);
  }
  return segments;
}

absl::Status AddedTokens::SplitSegment(const Group& group, std::string_view text,
                                       const Segment& segment,
                                       std::vector<Segment>& segments) const {
  // What lies outside of the segment is not seen: its ends are ends of the text.
  const std::string_view inner = text.substr(segment.start, segment.end - segment.start);
  PatternMatcher white_space(white_space_);
  size_t done = 0;  // inner[0, done) is in `segments`
  size_t position = 0;
  const auto add = [&](std::optional<TokenId> id, size_t end) {
    if (done < end) segments.push_back({id, segment.start + done, segment.start + end});
    done = std::max(done, end);
  };
  while (position < inner.size()) {
    const AddedToken* token = Find(group, inner, position);
    if (token == nullptr) {
      ++position;
      continue;
    }
    size_t start = position;
    size_t end = position + token->content.size();
    position = end;
    if (token->single_word) {
      const absl::StatusOr<bool> alone = StandsAlone(inner, start, end);
      if (!alone.ok()) return alone.status();
      if (!*alone) continue;
    }
    if (token->lstrip) {
      const absl::StatusOr<size_t> stripped = WhiteSpaceBefore(inner, done, start);
      if (!stripped.ok()) return stripped.status();
      start = *stripped;
    }
    if (token->rstrip && end > done && end < inner.size()) {
      const absl::StatusOr<size_t> length = white_space.MatchLength(inner, end);
      if (!length.ok()) return length.status();
      end += *length;
    }
    add(std::nullopt, start);
    add(token->id, end);
  }
  add(std::nullopt, inner.size());
  return absl::OkStatus();
}

absl::StatusOr<bool> AddedTokens::StandsAlone(std::string_view text, size_t start,
                                              size_t end) const {
  PatternMatcher matcher(word_character_);
  if (start > 0) {
    const auto length = matcher.MatchLength(text, PreviousCharacter(text, start));
    if (!length.ok()) return length.status();
    if (*length > 0) return false;
  }
  if (end == text.size()) return true;
  const auto length = matcher.MatchLength(text, end);
  if (!length.ok()) return length.status();
  return *length == 0;
}

absl::StatusOr<size_t> AddedTokens::WhiteSpaceBefore(std::string_view text, size_t floor,
                                                     size_t position) const {
  PatternMatcher matcher(white_space_);
  while (position > floor) {
    const size_t previous = PreviousCharacter(text, position);
    // Nothing after the one character is shown, so each step costs the same.
    const auto length = matcher.MatchLength(text.substr(0, position), previous);
    if (!length.ok()) return length.status();
    if (*length == 0) break;
    position = previous;
  }
  return position;
}

}  // namespace ddl
