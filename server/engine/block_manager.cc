#include "server/engine/block_manager.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace ddl {
namespace {

size_t HashOf(uint64_t before, absl::Span<const TokenId> tokens) {
  uint64_t hash = before;
  for (const TokenId token : tokens) {
    hash = (hash ^ static_cast<uint64_t>(token)) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

BlockManager::BlockManager(int32_t num_blocks, int32_t block_size)
    : block_size_(block_size), blocks_(num_blocks) {
  DDL_CHECK(num_blocks >= 0 && block_size > 0, "no such cache");
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

int32_t BlockManager::Take() {
  DDL_CHECK(num_available() > 0, "no block is available");
  if (free_.empty()) Forget(cached_.front());
  const int32_t block = free_.back();
  free_.pop_back();
  blocks_[block].users = 1;
  return block;
}

void BlockManager::Share(int32_t block) {
  Block& shared = blocks_[block];
  if (shared.users == 0) {
    DDL_CHECK(shared.content.has_value(), "a free block holds nothing to share");
    cached_.erase(shared.position);
  }
  ++shared.users;
}

void BlockManager::GiveBack(int32_t block) {
  Block& given = blocks_[block];
  DDL_CHECK(given.users > 0, "a free block was given back");
  if (--given.users > 0) return;
  if (given.content.has_value()) {
    given.position = cached_.insert(cached_.end(), block);
  } else {
    free_.push_back(block);
  }
}

std::optional<int32_t> BlockManager::Find(ContentId before,
                                          absl::Span<const TokenId> tokens) const {
  const auto [begin, end] = known_.equal_range(HashOf(before, tokens));
  for (auto it = begin; it != end; ++it) {
    const Content& content = *blocks_[it->second].content;
    if (content.before == before && absl::MakeConstSpan(content.tokens) == tokens) {
      return it->second;
    }
  }
  return std::nullopt;
}

void BlockManager::MakeKnown(int32_t block, ContentId before, absl::Span<const TokenId> tokens) {
  const size_t hash = HashOf(before, tokens);
  blocks_[block].content = Content{.id = next_content_++,
                                   .before = before,
                                   .tokens = {tokens.begin(), tokens.end()},
                                   .hash = hash};
  known_.emplace(hash, block);
}

// Of a cached block, which is free afterwards.
void BlockManager::Forget(int32_t block) {
  Block& forgotten = blocks_[block];
  const auto [begin, end] = known_.equal_range(forgotten.content->hash);
  known_.erase(std::find_if(begin, end, [block](const auto& it) { return it.second == block; }));
  forgotten.content.reset();
  cached_.erase(forgotten.position);
  free_.push_back(block);
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : manager_(std::exchange(other.manager_, nullptr)),
      blocks_(std::exchange(other.blocks_, {})),
      num_known_(std::exchange(other.num_known_, 0)) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this != &other) {
    Clear();
    manager_ = std::exchange(other.manager_, nullptr);
    blocks_ = std::exchange(other.blocks_, {});
    num_known_ = std::exchange(other.num_known_, 0);
  }
  return *this;
}

bool BlockTable::Grow(BlockManager& manager, int64_t tokens) {
  DDL_CHECK(manager_ == nullptr || manager_ == &manager, "a table has one manager");
  const int32_t wanted = manager.BlocksFor(tokens);
  if (wanted - size() > manager.num_available()) return false;
  manager_ = &manager;
  while (size() < wanted) blocks_.push_back(manager.Take());
  return true;
}

int32_t BlockTable::TakeKnown(BlockManager& manager, absl::Span<const TokenId> tokens) {
  DDL_CHECK(blocks_.empty(), "only a sequence that has nothing looks for its beginning");
  manager_ = &manager;
  const int32_t block_size = manager.block_size();
  BlockManager::ContentId before = BlockManager::kBeginning;
  while (static_cast<int64_t>(tokens.size()) >= int64_t{num_known_ + 1} * block_size) {
    const std::optional<int32_t> block =
        manager.Find(before, tokens.subspan(size_t{1} * num_known_ * block_size, block_size));
    if (!block.has_value()) break;
    manager.Share(*block);
    blocks_.push_back(*block);
    ++num_known_;
    before = manager.ContentOf(*block);
  }
  return num_known_ * block_size;
}

void BlockTable::ShareBeginning(const BlockTable& other, int32_t count) {
  DDL_CHECK(blocks_.empty() && count <= other.size(), "no such beginning");
  manager_ = other.manager_;
  blocks_.assign(other.blocks_.begin(), other.blocks_.begin() + count);
  for (const int32_t block : blocks_) manager_->Share(block);
  num_known_ = std::min(other.num_known_, count);
}

void BlockTable::MakeKnown(absl::Span<const TokenId> computed) {
  const int32_t block_size = manager_->block_size();
  const auto full = static_cast<int32_t>(computed.size() / block_size);
  for (; num_known_ < full; ++num_known_) {
    int32_t& block = blocks_[num_known_];
    const BlockManager::ContentId before =
        num_known_ == 0 ? BlockManager::kBeginning : manager_->ContentOf(blocks_[num_known_ - 1]);
    const auto tokens = computed.subspan(size_t{1} * num_known_ * block_size, block_size);
    const std::optional<int32_t> known = manager_->Find(before, tokens);
    if (!known.has_value()) {
      manager_->MakeKnown(block, before, tokens);
    } else if (*known != block) {
      manager_->Share(*known);
      manager_->GiveBack(block);
      block = *known;
    }
  }
}

// From the end, so that of a chain that nobody uses any more its end is lent out first: a block
// is of no use without those before it.
void BlockTable::Clear() {
  for (; !blocks_.empty(); blocks_.pop_back()) manager_->GiveBack(blocks_.back());
  num_known_ = 0;
}

}  // namespace ddl
