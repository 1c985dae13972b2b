#include "server/engine/block_manager.h"

#include <utility>

#include "model/check.h"

namespace ddl {

BlockManager::BlockManager(int32_t num_blocks, int32_t block_size)
    : block_size_(block_size), lent_(num_blocks, false) {
  DDL_CHECK(num_blocks >= 0 && block_size > 0, "no such cache");
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

int32_t BlockManager::Take() {
  DDL_CHECK(!free_.empty(), "no free block");
  const int32_t block = free_.back();
  free_.pop_back();
  lent_[block] = true;
  return block;
}

void BlockManager::GiveBack(int32_t block) {
  DDL_CHECK(lent_[block], "a free block was given back");
  lent_[block] = false;
  free_.push_back(block);
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : manager_(std::exchange(other.manager_, nullptr)), blocks_(std::exchange(other.blocks_, {})) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this != &other) {
    Clear();
    manager_ = std::exchange(other.manager_, nullptr);
    blocks_ = std::exchange(other.blocks_, {});
  }
  return *this;
}

bool BlockTable::Grow(BlockManager& manager, int64_t tokens) {
  DDL_CHECK(manager_ == nullptr || manager_ == &manager, "a table has one manager");
  const int32_t wanted = manager.BlocksFor(tokens);
  if (wanted - size() > manager.num_free()) return false;
  manager_ = &manager;
  while (size() < wanted) blocks_.push_back(manager.Take());
  return true;
}

void BlockTable::Clear() {
  for (const int32_t block : blocks_) manager_->GiveBack(block);
  blocks_.clear();
}

}  // namespace ddl
