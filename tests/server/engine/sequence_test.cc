#include "server/engine/sequence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace ddl {
namespace {

using testing::ElementsAre;

TEST(SequenceRankTest, OrdersByPriorityThenArrivalThenInput) {
  const std::vector<SequenceRank> ordered = {
      {Priority::kHigh, 9, 0},   {Priority::kNormal, 2, 0}, {Priority::kNormal, 2, 1},
      {Priority::kNormal, 3, 0}, {Priority::kLow, 1, 0},
  };
  EXPECT_TRUE(std::ranges::is_sorted(ordered));
}

TEST(SequenceTest, CountsWhatAChunkBrings) {
  BlockManager blocks(8, 4);
  Sequence sequence({}, {1, 2, 3, 4, 5}, {.generates = true});
  const auto mark = [&sequence](int32_t end) {
    const ComputedPositions computed = sequence.MarkBegun(end);
    return std::vector<int32_t>{computed.prompt, computed.generated, computed.again};
  };
  EXPECT_THAT(mark(3), ElementsAre(3, 0, 0));
  EXPECT_FALSE(sequence.IsDecode());
  EXPECT_THAT(mark(5), ElementsAre(2, 0, 0));
  sequence.Append(6);
  EXPECT_TRUE(sequence.IsDecode());
  EXPECT_THAT(mark(6), ElementsAre(0, 1, 0));
  sequence.Append(7);
  sequence.Free();  // preempted with 6 positions computed
  EXPECT_EQ(sequence.num_computed(), 0);
  EXPECT_EQ(sequence.num_remaining(), 7);
  EXPECT_FALSE(sequence.IsDecode());
  EXPECT_THAT(mark(4), ElementsAre(0, 0, 4));
  sequence.Free();  // and again, in the middle
  EXPECT_THAT(mark(7), ElementsAre(0, 1, 6));
  EXPECT_EQ(sequence.num_generated(), 2);
}

TEST(SequenceTest, APreemptedPromptIsCountedOnce) {
  Sequence sequence({}, {1, 2, 3, 4, 5}, {});
  sequence.MarkBegun(2);
  sequence.Free();
  const ComputedPositions computed = sequence.MarkBegun(5);
  EXPECT_EQ(computed.again, 2);
  EXPECT_EQ(computed.prompt, 3);
}

TEST(SequenceTest, GivesTheRunnerEveryTokenUpToTheChunksEnd) {
  BlockManager blocks(8, 2);
  Sequence sequence({}, {1, 2, 3, 4, 5}, {.generates = true});
  ASSERT_TRUE(sequence.ReserveBlocks(blocks));
  sequence.Start(3);
  sequence.MarkBegun(2);
  const SequenceChunk chunk = sequence.ChunkUpTo(4);
  EXPECT_THAT(chunk.tokens, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(chunk.start, 2);
  EXPECT_EQ(chunk.slot, 3);
  EXPECT_EQ(chunk.block_table.size(), 3u);
  sequence.Free();
  EXPECT_EQ(blocks.num_free(), 8);
  EXPECT_FALSE(sequence.holds_slot());
}

}  // namespace
}  // namespace ddl
