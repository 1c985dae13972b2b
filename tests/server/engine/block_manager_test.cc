#include "server/engine/block_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

namespace ddl {
namespace {

TEST(BlockManagerTest, CountsTheBlocksThatPositionsNeed) {
  struct Row {
    int32_t block_size;
    int64_t tokens;
    int32_t blocks;
  };
  const Row rows[] = {{1, 0, 0},
                      {1, 1, 1},
                      {1, 7, 7},
                      {16, 0, 0},
                      {16, 1, 1},
                      {16, 15, 1},
                      {16, 16, 1},
                      {16, 17, 2},
                      {16, 32, 2},
                      {16, 33, 3},
                      {16, int64_t{1} << 33, 1 << 29}};
  for (const Row& row : rows) {
    EXPECT_EQ(BlockManager(4, row.block_size).BlocksFor(row.tokens), row.blocks)
        << row.tokens << " tokens in blocks of " << row.block_size;
  }
}

TEST(BlockManagerTest, EveryBlockHasOneOwner) {
  BlockManager manager(5, 4);
  BlockTable a, b;
  ASSERT_TRUE(a.Grow(manager, 9));  // 3 blocks
  ASSERT_TRUE(b.Grow(manager, 5));  // 2 blocks
  std::set<int32_t> blocks(a.blocks().begin(), a.blocks().end());
  blocks.insert(b.blocks().begin(), b.blocks().end());
  EXPECT_THAT(blocks, testing::ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(manager.num_free(), 0);
  EXPECT_EQ(manager.num_used(), 5);
}

TEST(BlockTableTest, GrowsAtTheEndAndOnlyWhenNeeded) {
  BlockManager manager(8, 4);
  BlockTable table;
  ASSERT_TRUE(table.Grow(manager, 4));
  EXPECT_EQ(table.size(), 1);
  const int32_t first = table.blocks()[0];
  ASSERT_TRUE(table.Grow(manager, 4));
  EXPECT_EQ(table.size(), 1);
  ASSERT_TRUE(table.Grow(manager, 5));
  EXPECT_EQ(table.size(), 2);
  EXPECT_EQ(table.blocks()[0], first);
  ASSERT_TRUE(table.Grow(manager, 1));
  EXPECT_EQ(table.size(), 2) << "a table never shrinks";
}

TEST(BlockTableTest, FailsWholeWhenTooFewAreFree) {
  BlockManager manager(3, 4);
  BlockTable a, b;
  ASSERT_TRUE(a.Grow(manager, 8));
  EXPECT_FALSE(b.Grow(manager, 5));
  EXPECT_EQ(b.size(), 0);
  EXPECT_EQ(manager.num_free(), 1);
  EXPECT_TRUE(b.Grow(manager, 4));
}

TEST(BlockTableTest, FreesItsBlocks) {
  BlockManager manager(4, 4);
  {
    BlockTable table;
    ASSERT_TRUE(table.Grow(manager, 16));
    EXPECT_EQ(manager.num_free(), 0);
  }
  EXPECT_EQ(manager.num_free(), 4) << "when it goes out of scope";

  BlockTable table;
  ASSERT_TRUE(table.Grow(manager, 16));
  table.Free();
  EXPECT_EQ(manager.num_free(), 4) << "when it is cleared";
  table.Free();
  EXPECT_EQ(manager.num_free(), 4) << "once";

  ASSERT_TRUE(table.Grow(manager, 5));
  BlockTable moved = std::move(table);
  EXPECT_EQ(manager.num_free(), 2) << "moving keeps them";
  BlockTable other;
  ASSERT_TRUE(other.Grow(manager, 8));
  other = std::move(moved);
  EXPECT_EQ(manager.num_free(), 2) << "assigning gives back what was there";
  EXPECT_EQ(other.size(), 2);
}

// --- Sharing and the prefix cache ----------------------------------------------------------

// `length` tokens from `first` on.
std::vector<TokenId> Tokens(int32_t length, TokenId first = 0) {
  std::vector<TokenId> tokens(length);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// A table that has computed `tokens`, and made known what is full.
BlockTable Computed(BlockManager& manager, const std::vector<TokenId>& tokens) {
  BlockTable table;
  EXPECT_TRUE(table.Grow(manager, static_cast<int64_t>(tokens.size())));
  table.CacheFullBlocks(tokens);
  return table;
}

void ExpectCounts(const BlockManager& manager, int32_t free, int32_t used, int32_t cached) {
  EXPECT_EQ(manager.num_free(), free);
  EXPECT_EQ(manager.num_used(), used);
  EXPECT_EQ(manager.num_cached(), cached);
  EXPECT_EQ(manager.num_available(), free + cached);
}

TEST(BlockTableTest, FindsWholeBlocksOfTheSameBeginning) {
  BlockManager manager(16, 4);
  const BlockTable first = Computed(manager, Tokens(10));
  std::vector<TokenId> branched = Tokens(12);
  branched[7] = 99;
  std::vector<TokenId> other_beginning = Tokens(12);
  other_beginning[0] = 99;
  struct Row {
    const char* name;
    std::vector<TokenId> tokens;
    int32_t found;
  };
  const Row rows[] = {
      {"nothing", {}, 0},
      {"less than a block", Tokens(3), 0},
      {"a block", Tokens(4), 4},
      {"a block and more", Tokens(7), 4},
      {"two", Tokens(8), 8},
      {"the third was not full", Tokens(12), 8},
      {"another second block", branched, 4},
      {"the same second block after another first", other_beginning, 0},
      {"a second block at the beginning", Tokens(4, 4), 0},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    BlockTable table;
    EXPECT_EQ(table.MatchPrefix(manager, row.tokens), row.found);
    ASSERT_EQ(table.size(), row.found / 4);
    EXPECT_TRUE(std::equal(table.blocks().begin(), table.blocks().end(), first.blocks().begin()));
    ExpectCounts(manager, 13, 3, 0);
  }
}

TEST(BlockTableTest, FreesASharedBlockWithItsLastUser) {
  BlockManager manager(8, 4);
  BlockTable first = Computed(manager, Tokens(8));
  BlockTable second, third;
  EXPECT_EQ(second.MatchPrefix(manager, Tokens(8)), 8);
  third.ShareBeginning(first, 1);
  ASSERT_TRUE(third.Grow(manager, 8));
  ExpectCounts(manager, 5, 3, 0);
  first.Free();
  ExpectCounts(manager, 5, 3, 0);
  second.Free();
  ExpectCounts(manager, 5, 2, 1);
  third.Free();
  ExpectCounts(manager, 6, 0, 2);
}

TEST(BlockTableTest, SharingNeedsNoCache) {
  BlockManager manager(8, 4);
  BlockTable first, second;
  ASSERT_TRUE(first.Grow(manager, 12));
  second.ShareBeginning(first, 2);
  first.Free();
  ExpectCounts(manager, 6, 2, 0);
  second.Free();
  ExpectCounts(manager, 8, 0, 0);
}

TEST(BlockManagerTest, EvictsLeastRecentlyUsed) {
  BlockManager manager(4, 4);
  Computed(manager, Tokens(4, 0));
  Computed(manager, Tokens(4, 100));
  Computed(manager, Tokens(4, 200));
  {
    BlockTable again;
    EXPECT_EQ(again.MatchPrefix(manager, Tokens(4, 0)), 4);
  }
  BlockTable table;
  ASSERT_TRUE(table.Grow(manager, 8));  // the free one, and that of 100
  ExpectCounts(manager, 0, 2, 2);
  for (const auto& [first, found] : {std::pair{0, 4}, {100, 0}, {200, 4}}) {
    BlockTable known;
    EXPECT_EQ(known.MatchPrefix(manager, Tokens(4, first)), found) << first;
  }
}

TEST(BlockManagerTest, OfAChainTheEndGoesFirst) {
  BlockManager manager(4, 4);
  Computed(manager, Tokens(16));
  for (int32_t taken = 1; taken <= 4; ++taken) {
    BlockTable table, known;
    ASSERT_TRUE(table.Grow(manager, 4 * taken));
    EXPECT_EQ(known.MatchPrefix(manager, Tokens(16)), 16 - 4 * taken);
    known.Free();
    table.Free();
    Computed(manager, Tokens(16));
  }
}

TEST(BlockTableTest, AContentIsThereOnce) {
  BlockManager manager(8, 4);
  BlockTable first, second;
  ASSERT_TRUE(first.Grow(manager, 10));
  ASSERT_TRUE(second.Grow(manager, 10));
  ExpectCounts(manager, 2, 6, 0);
  first.CacheFullBlocks(Tokens(10));
  second.CacheFullBlocks(Tokens(5));
  ExpectCounts(manager, 3, 5, 0);
  second.CacheFullBlocks(Tokens(10));
  ExpectCounts(manager, 4, 4, 0);
  EXPECT_EQ(second.blocks().first(2), first.blocks().first(2));
  EXPECT_NE(second.blocks()[2], first.blocks()[2]) << "not full, and written by each";
  first.Free();
  second.Free();
  ExpectCounts(manager, 6, 0, 2);
}

TEST(BlockManagerDeathTest, DiesWhenATableMixesManagers) {
  BlockManager first(2, 4), second(2, 4);
  BlockTable table;
  ASSERT_TRUE(table.Grow(first, 1));
  EXPECT_DEATH((void)table.Grow(second, 8), "another manager");
}

}  // namespace
}  // namespace ddl
