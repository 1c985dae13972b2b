#include "model/tokenizer/byte_pair_encoder.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/string_view.h"

namespace ddl {
namespace {

uint64_t PairKey(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// The order of a heap whose first is the lowest.
constexpr auto kComesLater = [](const auto& a, const auto& b) {
  return std::tie(a.rank, a.position) > std::tie(b.rank, b.position);
};

}  // namespace

BytePairEncoder::BytePairEncoder(const BytePairVocabulary& vocabulary)
    : byte_tokens_(vocabulary.byte_tokens),
      unknown_(vocabulary.unknown),
      fuse_unknown_(vocabulary.fuse_unknown) {
  merges_.reserve(vocabulary.merges.size());
  int32_t rank = 0;
  for (const MergeRule& rule : vocabulary.merges) {
    merges_[PairKey(rule.left, rule.right)] = {rank++, rule.merged};
  }
  Workspace workspace;
  std::vector<Piece> pieces;
  absl::flat_hash_map<std::string, TokenId> whole_words;
  for (const BytePairVocabulary::Entry& entry : vocabulary.entries) {
    pieces.clear();
    const bool encoded = !Encode(entry.bytes, workspace, pieces).has_value();
    const bool makes_itself = encoded && pieces.size() == 1 && pieces[0].id == entry.id;
    if (makes_itself || vocabulary.ignore_merges) whole_words.emplace(entry.bytes, entry.id);
  }
  whole_words_ = std::move(whole_words);
}

std::optional<size_t> BytePairEncoder::Encode(std::string_view word, Workspace& workspace,
                                              std::vector<Piece>& pieces) const {
  const auto whole = whole_words_.find(absl::string_view(word.data(), word.size()));
  if (whole != whole_words_.end()) {
    pieces.push_back({whole->second, static_cast<uint32_t>(word.size())});
    return std::nullopt;
  }
  if (const auto without_token = StartFromBytes(word, workspace)) return without_token;
  MergeAll(workspace);
  for (const Workspace::Symbol& symbol : workspace.symbols_) {
    if (symbol.length > 0) pieces.push_back({symbol.id, symbol.length});
  }
  return std::nullopt;
}

std::optional<size_t> BytePairEncoder::StartFromBytes(std::string_view word,
                                                      Workspace& workspace) const {
  auto& symbols = workspace.symbols_;
  symbols.clear();
  bool follows_unknown = false;
  for (size_t i = 0; i < word.size(); ++i) {
    const std::optional<TokenId> known = byte_tokens_[static_cast<uint8_t>(word[i])];
    if (!known && !unknown_) return i;
    if (!known && fuse_unknown_ && follows_unknown) {
      ++symbols.back().length;
      continue;
    }
    follows_unknown = !known;
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({known ? *known : *unknown_, 1, index - 1, index + 1});
  }
  if (!symbols.empty()) symbols.back().next = -1;
  return std::nullopt;
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
