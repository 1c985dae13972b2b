#ifndef DDL_SERVER_ENGINE_BLOCK_MANAGER_H_
#define DDL_SERVER_ENGINE_BLOCK_MANAGER_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/types/span.h"
#include "model/token.h"

// Which sequence owns which block of the K/V cache, and what unowned blocks still hold.
// Integers only: the tensors live behind ModelRunner.

namespace ddl {

class BlockTable;

// Allocates the blocks [0, num_blocks) of `block_size` tokens each. A block is
//
//   free    it holds nothing;
//   used    by one table, or by several that share it. A full block that has been computed may
//           be in the prefix cache: found again by the tokens it holds and the block before;
//   cached  in the prefix cache, and used by no table. Evicted when nothing is free, the least
//           recently used (LRU) first.
//
// The prefix cache never confuses two contents: a block is there under the identity of the block
// before it and its own tokens, which are compared one by one; hashes only find the candidates.
//
// One thread at a time.
class BlockManager {
 public:
  BlockManager(int32_t num_blocks, int32_t block_size);
  BlockManager(const BlockManager&) = delete;
  BlockManager& operator=(const BlockManager&) = delete;

  int32_t block_size() const { return block_size_; }  // tokens
  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_cached() const { return static_cast<int32_t>(cached_.size()); }
  int32_t num_used() const { return num_blocks() - num_available(); }
  int32_t num_available() const { return num_free() + num_cached(); }  // to be allocated

  // Blocks that hold `tokens` positions.
  int32_t BlocksFor(int64_t tokens) const {
    return static_cast<int32_t>((tokens + block_size_ - 1) / block_size_);
  }

 private:
  friend class BlockTable;

  // Identifies a content together with all before it; never given out twice.
  using ContentId = uint64_t;
  static constexpr ContentId kBeginning = 0;  // before the first block
  struct Content {
    ContentId id = 0;
    ContentId before = 0;         // of the block before
    std::vector<TokenId> tokens;  // [block_size]
    size_t hash = 0;              // of before and tokens
  };
  struct Block {
    int32_t users = 0;                      // tables
    std::optional<Content> content;         // when it is in the prefix cache
    std::list<int32_t>::iterator position;  // in cached_, while cached
  };

  int32_t Allocate();  // num_available() > 0
  void Share(int32_t block);
  void Free(int32_t block);
  // The block of the prefix cache that holds `tokens` after `before`.
  std::optional<int32_t> Find(ContentId before, absl::Span<const TokenId> tokens) const;
  void Cache(int32_t block, ContentId before, absl::Span<const TokenId> tokens);
  void Evict(int32_t block);  // a cached one, which is free afterwards
  ContentId ContentOf(int32_t block) const { return blocks_[block].content->id; }

  const int32_t block_size_;
  std::vector<Block> blocks_;                            // [num_blocks]
  std::vector<int32_t> free_;                            // the next to be allocated is last
  std::list<int32_t> cached_;                            // the least recently used is first
  std::unordered_multimap<size_t, int32_t> by_content_;  // blocks by its hash
  ContentId next_content_ = kBeginning + 1;
};

// The blocks of one sequence, in the order of its positions. Owns a share in them, which it frees
// at the latest when it goes away. The manager must outlive it.
class BlockTable {
 public:
  BlockTable() = default;  // holds nothing, and no manager
  ~BlockTable() { Free(); }
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;

  // Grows the table to hold `tokens` positions; it never shrinks. False, with nothing changed,
  // when too few blocks are available. Always the same manager.
  [[nodiscard]] bool Grow(BlockManager& manager, int64_t tokens);
  // Makes an empty table begin with the blocks of the prefix cache that hold the beginning of
  // `tokens`, whole ones only. Returns the positions that they hold.
  int32_t MatchPrefix(BlockManager& manager, absl::Span<const TokenId> tokens);
  // Makes an empty table begin with the first `count` blocks of another, which go on being
  // shared. Nobody may write to them.
  void ShareBeginning(const BlockTable& other, int32_t count);
  // Enters every full block of `computed`, the tokens whose positions have been computed, into the
  // prefix cache. Where another block has the same content there, the table shares that from now
  // on and frees its own, so that a content is there once, and whoever uses a block also uses the
  // one that it follows there.
  void CacheFullBlocks(absl::Span<const TokenId> computed);
  void Free();

  absl::Span<const int32_t> blocks() const { return blocks_; }
  int32_t size() const { return static_cast<int32_t>(blocks_.size()); }

 private:
  BlockManager* manager_ = nullptr;
  std::vector<int32_t> blocks_;
  int32_t num_cached_blocks_ = 0;  // the first so many are in the prefix cache
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_BLOCK_MANAGER_H_
