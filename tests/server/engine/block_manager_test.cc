#include "server/engine/block_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(BlockTableTest, GivesItsBlocksBack) {
  BlockManager manager(4, 4);
  {
    BlockTable table;
    ASSERT_TRUE(table.Grow(manager, 16));
    EXPECT_EQ(manager.num_free(), 0);
  }
  EXPECT_EQ(manager.num_free(), 4) << "when it goes out of scope";

  BlockTable table;
  ASSERT_TRUE(table.Grow(manager, 16));
  table.Clear();
  EXPECT_EQ(manager.num_free(), 4) << "when it is cleared";
  table.Clear();
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

TEST(BlockManagerDeathTest, ABlockIsTakenFromOneManagerOnly) {
  BlockManager first(2, 4), second(2, 4);
  BlockTable table;
  ASSERT_TRUE(table.Grow(first, 1));
  EXPECT_DEATH((void)table.Grow(second, 8), "one manager");
}

}  // namespace
}  // namespace ddl
