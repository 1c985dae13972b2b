#ifndef DDL_SERVER_ENGINE_BLOCK_MANAGER_H_
#define DDL_SERVER_ENGINE_BLOCK_MANAGER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

// Who owns which block of the K/V cache. Integers only: the tensors live behind ModelRunner.

namespace ddl {

class BlockTable;

// Lends out the blocks [0, num_blocks) of `block_size` tokens each. One thread at a time.
class BlockManager {
 public:
  BlockManager(int32_t num_blocks, int32_t block_size);
  BlockManager(const BlockManager&) = delete;
  BlockManager& operator=(const BlockManager&) = delete;

  int32_t block_size() const { return block_size_; }  // tokens
  int32_t num_blocks() const { return static_cast<int32_t>(lent_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_used() const { return num_blocks() - num_free(); }

  // Blocks that hold `tokens` positions.
  int32_t BlocksFor(int64_t tokens) const {
    return static_cast<int32_t>((tokens + block_size_ - 1) / block_size_);
  }

 private:
  friend class BlockTable;
  int32_t Take();  // num_free() > 0
  void GiveBack(int32_t block);

  const int32_t block_size_;
  std::vector<int32_t> free_;  // the next to lend out is last
  std::vector<bool> lent_;     // [num_blocks]
};

// The blocks of one sequence, in the order of its positions. Owns them: they are free again when
// the table is cleared or goes away. The manager must outlive it.
class BlockTable {
 public:
  BlockTable() = default;  // holds nothing, and no manager
  ~BlockTable() { Clear(); }
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;

  // Grows the table to hold `tokens` positions; it never shrinks. False, with nothing changed,
  // when too few blocks are free. Always the same manager.
  [[nodiscard]] bool Grow(BlockManager& manager, int64_t tokens);
  void Clear();

  absl::Span<const int32_t> blocks() const { return blocks_; }
  int32_t size() const { return static_cast<int32_t>(blocks_.size()); }

 private:
  BlockManager* manager_ = nullptr;
  std::vector<int32_t> blocks_;
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_BLOCK_MANAGER_H_
