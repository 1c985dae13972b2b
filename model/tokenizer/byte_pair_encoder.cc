#include "model/tokenizer/byte_pair_encoder.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

uint64_t PairKey(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// The order of a heap whose first is the lowest.
constexpr auto kComesLater = [](const auto& a, const auto& b) {
  return std::tie(a.rank, a.position) > std::tie(b.rank, b.position);
};

constexpr TokenId kNone = -1;
constexpr size_t kLongestCharacter = 4;

}  // namespace

std::optional<uint8_t> FallbackByte(std::string_view token) {
  constexpr std::string_view kBegin = "<0x";
  if (token.size() != 6 || token.substr(0, 3) != kBegin || token[5] != '>') return std::nullopt;
  int byte = 0;
  for (const char c : token.substr(3, 2)) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return std::nullopt;
    byte = byte * 16 + (absl::ascii_isdigit(static_cast<unsigned char>(c))
                            ? c - '0'
                            : absl::ascii_tolower(static_cast<unsigned char>(c)) - 'a' + 10);
  }
  return static_cast<uint8_t>(byte);
}

BytePairEncoder::BytePairEncoder(const BytePairVocabulary& vocabulary)
    : unknown_(vocabulary.unknown),
      fuse_unknown_(vocabulary.fuse_unknown),
      continuing_prefix_(vocabulary.continuing_prefix),
      end_suffix_(vocabulary.end_suffix) {
  low_characters_.fill(kNone);
  std::array<TokenId, 256> byte_tokens;
  byte_tokens.fill(kNone);
  const size_t longest = continuing_prefix_.size() + kLongestCharacter + end_suffix_.size();
  for (const BytePairVocabulary::Entry& entry : vocabulary.entries) {
    if (entry.text == unknown_) unknown_id_ = entry.id;
    const auto byte = FallbackByte(entry.text);
    if (byte && entry.text == absl::StrFormat("<0x%02X>", *byte)) byte_tokens[*byte] = entry.id;
    if (entry.text.empty() || entry.text.size() > longest) continue;
    characters_.emplace(entry.text, entry.id);
    size_t end = 0;
    const char32_t first = TakeCharacter(entry.text, end);
    if (end == entry.text.size() && first < kByteAlphabetEnd) low_characters_[first] = entry.id;
  }
  if (vocabulary.byte_fallback) byte_tokens_ = byte_tokens;
  merges_.reserve(vocabulary.merges.size());
  for (const MergeRule& rule : vocabulary.merges) {
    merges_[PairKey(rule.left, rule.right)] = {rule.rank, rule.merged};
  }
  Workspace workspace;
  std::vector<Piece> pieces;
  absl::flat_hash_map<std::string, TokenId> whole_words;
  for (const BytePairVocabulary::Entry& entry : vocabulary.entries) {
    pieces.clear();
    if (entry.text.empty()) continue;
    const bool encoded = Encode(entry.text, workspace, pieces).ok();
    const bool makes_itself = encoded && pieces.size() == 1 && pieces[0].id == entry.id &&
                              pieces[0].length == entry.text.size();
    if (makes_itself || vocabulary.ignore_merges) whole_words.emplace(entry.text, entry.id);
  }
  whole_words_ = std::move(whole_words);
}

absl::Status BytePairEncoder::Encode(std::string_view word, Workspace& workspace,
                                     std::vector<Piece>& pieces) const {
  const auto whole = whole_words_.find(absl::string_view(word.data(), word.size()));
  if (whole != whole_words_.end()) {
    pieces.push_back({whole->second, static_cast<uint32_t>(word.size())});
    return absl::OkStatus();
  }
  if (absl::Status status = StartFromCharacters(word, workspace); !status.ok()) return status;
  MergeAll(workspace);
  for (const Workspace::Symbol& symbol : workspace.symbols_) {
    if (symbol.length > 0) pieces.push_back({symbol.id, symbol.length});
  }
  return absl::OkStatus();
}

std::optional<TokenId> BytePairEncoder::FindCharacter(std::string_view word, size_t start,
                                                      size_t end) const {
  const bool has_prefix = start > 0 && !continuing_prefix_.empty();
  const bool has_suffix = end == word.size() && !end_suffix_.empty();
  const std::string_view character = word.substr(start, end - start);
  auto token = characters_.end();
  if (has_prefix || has_suffix) {
    token = characters_.find(absl::StrCat(has_prefix ? continuing_prefix_ : "",
                                          absl::string_view(character.data(), character.size()),
                                          has_suffix ? end_suffix_ : ""));
  } else {
    size_t position = start;
    const char32_t code_point = TakeCharacter(word, position);
    if (code_point < kByteAlphabetEnd) {
      const TokenId id = low_characters_[code_point];
      return id == kNone ? std::nullopt : std::optional(id);
    }
    token = characters_.find(absl::string_view(character.data(), character.size()));
  }
  return token == characters_.end() ? std::nullopt : std::optional(token->second);
}

absl::Status BytePairEncoder::StartFromCharacters(std::string_view word,
                                                  Workspace& workspace) const {
  workspace.symbols_.clear();
  uint32_t unknown_length = 0;  // bytes without tokens before `start`, not yet added
  const auto add_unknown = [&] {
    if (unknown_length > 0) workspace.Add(*unknown_id_, unknown_length);
    unknown_length = 0;
  };
  for (size_t start = 0; start < word.size();) {
    const size_t end = NextCharacter(word, start);
    const auto length = static_cast<uint32_t>(end - start);
    if (const std::optional<TokenId> id = FindCharacter(word, start, end)) {
      add_unknown();
      workspace.Add(*id, length);
    } else if (AddBytes(word, start, end, workspace)) {
      // As in Hugging Face's tokenizers, an unknown token before these comes after them.
    } else if (unknown_) {
      if (!unknown_id_) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the vocabulary has no token for \"", std::string(word.substr(start, length)),
            "\", and its unk_token, \"", *unknown_, "\", is not in the vocabulary either"));
      }
      if (!fuse_unknown_) add_unknown();
      unknown_length += length;
    }
    start = end;
  }
  add_unknown();
  if (!workspace.symbols_.empty()) workspace.symbols_.back().next = -1;
  return absl::OkStatus();
}

bool BytePairEncoder::AddBytes(std::string_view word, size_t start, size_t end,
                               Workspace& workspace) const {
  if (!byte_tokens_) return false;
  const std::string bytes = absl::StrCat(start > 0 ? continuing_prefix_ : "",
                                         std::string(word.substr(start, end - start)),
                                         end == word.size() ? end_suffix_ : "");
  const auto token = [this](char byte) { return (*byte_tokens_)[static_cast<uint8_t>(byte)]; };
  for (const char byte : bytes) {
    if (token(byte) == kNone) return false;
  }
  for (const char byte : bytes) workspace.Add(token(byte), 1);
  return true;
}

void BytePairEncoder::Enqueue(int32_t left, Workspace& workspace) const {
  if (left < 0) return;
  const Workspace::Symbol& symbol = workspace.symbols_[left];
  if (symbol.next < 0) return;
  const TokenId right = workspace.symbols_[symbol.next].id;
  const auto merge = merges_.find(PairKey(symbol.id, right));
  if (merge == merges_.end()) return;
  workspace.queue_.push_back({merge->second.rank, left, symbol.id, right, merge->second.merged});
  std::push_heap(workspace.queue_.begin(), workspace.queue_.end(), kComesLater);
}

void BytePairEncoder::MergeAll(Workspace& workspace) const {
  auto& symbols = workspace.symbols_;
  auto& queue = workspace.queue_;
  queue.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) Enqueue(static_cast<int32_t>(i), workspace);
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), kComesLater);
    const Workspace::Candidate candidate = queue.back();
    queue.pop_back();
    Workspace::Symbol& left = symbols[candidate.position];
    if (left.length == 0 || left.id != candidate.left || left.next < 0) continue;
    Workspace::Symbol& right = symbols[left.next];
    if (right.id != candidate.right) continue;
    left.id = candidate.merged;
    left.length += right.length;
    left.next = right.next;
    right.length = 0;
    if (left.next >= 0) symbols[left.next].previous = candidate.position;
    Enqueue(left.previous, workspace);
    Enqueue(candidate.position, workspace);
  }
}

}  // namespace ddl
