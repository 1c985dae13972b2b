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
  DDL_CHECK(num_blocks >= 0 && block_size > 0, "a cache of no size");
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

int32_t BlockManager::Allocate() {
  DDL_CHECK(num_available() > 0, "no block to allocate");
  if (free_.empty()) Evict(cached_.front());
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

void BlockManager::Free(int32_t block) {
  Block& freed = blocks_[block];
  DDL_CHECK(freed.users > 0, "a block was freed twice");
  if (--freed.users > 0) return;
  if (freed.content.has_value()) {
    freed.position = cached_.insert(cached_.end(), block);
  } else {
    free_.push_back(block);
  }
}

std::optional<int32_t> BlockManager::Find(ContentId before,
                                          absl::Span<const TokenId> tokens) const {
  const auto [begin, end] = by_content_.equal_range(HashOf(before, tokens));
  for (auto it = begin; it != end; ++it) {
    const Content& content = *blocks_[it->second].content;
    if (content.before == before && absl::MakeConstSpan(content.tokens) == tokens) {
      return it->second;
    }
  }
  return std::nullopt;
}

void BlockManager::Cache(int32_t block, ContentId before, absl::Span<const TokenId> tokens) {
  const size_t hash = HashOf(before, tokens);
  blocks_[block].content = Content{.id = next_content_++,
                                   .before = before,
                                   .tokens = {tokens.begin(), tokens.end()},
                                   .hash = hash};
  by_content_.emplace(hash, block);
}

void BlockManager::Evict(int32_t block) {
  Block& evicted = blocks_[block];
  const auto [begin, end] = by_content_.equal_range(evicted.content->hash);
  by_content_.erase(
      std::find_if(begin, end, [block](const auto& it) { return it.second == block; }));
  evicted.content.reset();
  cached_.erase(evicted.position);
  free_.push_back(block);
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : manager_(std::exchange(other.manager_, nullptr)),
      blocks_(std::exchange(other.blocks_, {})),
      num_cached_blocks_(std::exchange(other.num_cached_blocks_, 0)) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this != &other) {
    Free();
    manager_ = std::exchange(other.manager_, nullptr);
    blocks_ = std::exchange(other.blocks_, {});
    num_cached_blocks_ = std::exchange(other.num_cached_blocks_, 0);
  }
  return *this;
}

bool BlockTable::Grow(BlockManager& manager, int64_t tokens) {
  DDL_CHECK(manager_ == nullptr || manager_ == &manager, "a table was given another manager");
  const int32_t wanted = manager.BlocksFor(tokens);
  if (wanted - size() > manager.num_available()) return false;
  manager_ = &manager;
  while (size() < wanted) blocks_.push_back(manager.Allocate());
  return true;
}

int32_t BlockTable::MatchPrefix(BlockManager& manager, absl::Span<const TokenId> tokens) {
  DDL_CHECK(blocks_.empty(), "a prefix is matched for a table that has blocks");
  manager_ = &manager;
  const int32_t block_size = manager.block_size();
  BlockManager::ContentId before = BlockManager::kBeginning;
  while (static_cast<int64_t>(tokens.size()) >= int64_t{num_cached_blocks_ + 1} * block_size) {
    const std::optional<int32_t> block = manager.Find(
        before, tokens.subspan(size_t{1} * num_cached_blocks_ * block_size, block_size));
    if (!block.has_value()) break;
    manager.Share(*block);
    blocks_.push_back(*block);
    ++num_cached_blocks_;
    before = manager.ContentOf(*block);
  }
  return num_cached_blocks_ * block_size;
}

void BlockTable::ShareBeginning(const BlockTable& other, int32_t count) {
  DDL_CHECK(blocks_.empty() && count <= other.size(), "no such beginning");
  manager_ = other.manager_;
  blocks_.assign(other.blocks_.begin(), other.blocks_.begin() + count);
  for (const int32_t block : blocks_) manager_->Share(block);
  num_cached_blocks_ = std::min(other.num_cached_blocks_, count);
}

void BlockTable::CacheFullBlocks(absl::Span<const TokenId> computed) {
  const int32_t block_size = manager_->block_size();
  const auto full = static_cast<int32_t>(computed.size() / block_size);
  for (; num_cached_blocks_ < full; ++num_cached_blocks_) {
    int32_t& block = blocks_[num_cached_blocks_];
    const BlockManager::ContentId before =
        num_cached_blocks_ == 0 ? BlockManager::kBeginning
                                : manager_->ContentOf(blocks_[num_cached_blocks_ - 1]);
    const auto tokens = computed.subspan(size_t{1} * num_cached_blocks_ * block_size, block_size);
    const std::optional<int32_t> cached = manager_->Find(before, tokens);
    if (!cached.has_value()) {
      manager_->Cache(block, before, tokens);
    } else if (*cached != block) {
      manager_->Share(*cached);
      manager_->Free(block);
      block = *cached;
    }
  }
}

// From the end, so that of an unused chain the end is evicted first: a block
// is of no use without those before it.
void BlockTable::Free() {
  for (; !blocks_.empty(); blocks_.pop_back()) manager_->Free(blocks_.back());
  num_cached_blocks_ = 0;
}

}  // namespace ddl
