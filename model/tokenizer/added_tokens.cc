#include "model/tokenizer/added_tokens.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

#include "absl/strings/string_view.h"
#include "model/tokenizer/characters.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

// Where the white space that ends at `position` begins, at `floor` or after it.
size_t WhiteSpaceBefore(std::string_view text, size_t floor, size_t position) {
  while (position > floor) {
    const size_t previous = PreviousCharacter(text, position);
    size_t end = previous;
    if (!IsWhiteSpace(TakeCharacter(text, end))) break;
    position = previous;
  }
  return position;
}

}  // namespace

AddedTokens::AddedTokens(Regex white_space, Regex word_character)
    : white_space_(std::move(white_space)), word_character_(std::move(word_character)) {}

absl::StatusOr<AddedTokens> AddedTokens::Create(const absl::btree_map<TokenId, AddedToken>& tokens,
                                                const Normalizer& normalizer) {
  absl::StatusOr<Regex> white_space = Regex::WhiteSpace();
  if (!white_space.ok()) return white_space.status();
  absl::StatusOr<Regex> word_character = Regex::WordCharacter();
  if (!word_character.ok()) return word_character.status();
  AddedTokens result(*std::move(white_space), *std::move(word_character));
  // Of two that are written alike once normalized, special tokens come first.
  for (const bool special : {true, false}) {
    for (const auto& [id, token] : tokens) {
      if (token.special != special) continue;
      if (!token.normalized) {
        Add(token, token.content, result.original_);
        continue;
      }
      AlignedText content(token.content, 0, /*tracked=*/false);
      if (auto status = normalizer.Run(content); !status.ok()) return status;
      if (!content.empty()) Add(token, content.text(), result.normalized_);
    }
  }
  return result;
}

void AddedTokens::Add(const AddedToken& token, const std::string& content, Group& group) {
  group.by_content.emplace(content, token);
  std::vector<size_t>& lengths = group.lengths[static_cast<uint8_t>(content[0])];
  const auto place =
      std::lower_bound(lengths.begin(), lengths.end(), content.size(), std::greater<>());
  if (place == lengths.end() || *place != content.size()) lengths.insert(place, content.size());
}

const AddedToken* AddedTokens::Find(const Group& group, std::string_view text, size_t position,
                                    size_t& length) {
  for (const size_t candidate : group.lengths[static_cast<uint8_t>(text[position])]) {
    if (candidate > text.size() - position) continue;
    const auto token = group.by_content.find(absl::string_view(text.data() + position, candidate));
    if (token == group.by_content.end()) continue;
    length = candidate;
    return &token->second;
  }
  return nullptr;
}

absl::StatusOr<std::vector<AddedTokens::Segment>> AddedTokens::SplitOriginal(
    std::string_view text, bool parse_special) const {
  return Split(original_, text, parse_special);
}

absl::StatusOr<std::vector<AddedTokens::Segment>> AddedTokens::SplitNormalized(
    std::string_view text, bool parse_special) const {
  return Split(normalized_, text, parse_special);
}

absl::StatusOr<std::vector<AddedTokens::Segment>> AddedTokens::Split(const Group& group,
                                                                     std::string_view text,
                                                                     bool parse_special) const {
  std::vector<Segment> segments;
  if (group.by_content.empty()) {
    if (!text.empty()) segments.push_back({std::nullopt, 0, text.size()});
    return segments;
  }
  RegexMatcher white_space(white_space_);
  size_t done = 0;  // text[0, done) is in `segments`
  size_t position = 0;
  while (position < text.size()) {
    size_t length = 0;
    const AddedToken* token = Find(group, text, position, length);
    if (token == nullptr) {
      ++position;
      continue;
    }
    size_t start = position;
    size_t end = position + length;
    position = end;
    if (!parse_special && token->special) continue;
    if (token->single_word) {
      const absl::StatusOr<bool> alone = StandsAlone(text, start, end);
      if (!alone.ok()) return alone.status();
      if (!*alone) continue;
    }
    if (token->lstrip) start = WhiteSpaceBefore(text, std::min(done, start), start);
    if (token->lstrip) start = std::max(start, done);
    if (token->rstrip && end < done) {
      end = done;  // in white space that the token before took: looking again would be quadratic
    } else if (token->rstrip && end < text.size()) {
      const absl::StatusOr<size_t> space = white_space.MatchLength(text, end);
      if (!space.ok()) return space.status();
      end += *space;
    }
    if (done < start) segments.push_back({std::nullopt, done, start});
    if (start < end) segments.push_back({token->id, start, end});
    done = end;
  }
  if (done < text.size()) segments.push_back({std::nullopt, done, text.size()});
  return segments;
}

absl::StatusOr<bool> AddedTokens::StandsAlone(std::string_view text, size_t start,
                                              size_t end) const {
  RegexMatcher matcher(word_character_);
  if (start > 0) {
    const size_t previous = PreviousCharacter(text, start);
    const auto length = matcher.MatchLength(text.substr(0, start), previous);
    if (!length.ok()) return length.status();
    if (*length > 0) return false;
  }
  if (end == text.size()) return true;
  const auto length = matcher.MatchLength(text.substr(0, NextCharacter(text, end)), end);
  if (!length.ok()) return length.status();
  return *length == 0;
}

}  // namespace ddl
