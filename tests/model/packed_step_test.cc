// How a step's chunks become the batch that the model computes, and which of its rows the last
// layer computes.

#include "model/packed_step.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "model/kernels/packed_batch.h"
#include "model/wanted_rows.h"

namespace ddl {
namespace {

using kernels::Batch;

// "2<5: 3>70 4" for each sequence: slot 2, which goes on from the tails of slot 5, has the rows
// with these numbers; the tails after the first of them go to slot 70 as well. Without tails no
// "<5".
std::string Text(const Batch& batch, const std::vector<int32_t>& numbers) {
  std::vector<std::string> sequences;
  for (int64_t s = 0; s < batch.sequences; ++s) {
    std::string& text = sequences.emplace_back(absl::StrCat(batch.slot[s]));
    if (batch.tail_source != nullptr) absl::StrAppend(&text, "<", batch.tail_source[s]);
    text += ":";
    for (int32_t row = batch.row_begin[s]; row < batch.row_begin[s + 1]; ++row) {
      EXPECT_EQ(batch.row_sequence[row], s);
      absl::StrAppend(&text, " ", numbers[row]);
      if (batch.row_save != nullptr && batch.row_save[row] >= 0) {
        absl::StrAppend(&text, ">", batch.row_save[row]);
      }
    }
  }
  return absl::StrJoin(sequences, "; ");
}

std::string Join(absl::Span<const int32_t> values) { return absl::StrJoin(values, " "); }

constexpr PackingOptions kOptions = {.input_taps = 1,
                                     .max_context_length = 12,
                                     .kv_block_size = 4,
                                     .kv_num_blocks = 50,
                                     .max_sequences = 10,
                                     .has_tails = true};

// A chunk with all that it refers to. Tokens are 100, 101 ...
struct Chunk {
  int32_t start = 0;
  int32_t end = 0;
  std::vector<int32_t> blocks = {};
  int32_t slot = 0;
  std::optional<int32_t> tails_from_block = {};
  std::optional<int32_t> last_token_from = {};
};

class Chunks {
 public:
  explicit Chunks(const std::vector<Chunk>& chunks) : chunks_(chunks) {
    for (int32_t position = 0; position < 20; ++position) tokens_.push_back(100 + position);
  }
  std::vector<SequenceChunk> Get() const {
    std::vector<SequenceChunk> all;
    for (const Chunk& chunk : chunks_) {
      SequenceChunk& next = all.emplace_back();
      next.tokens = absl::MakeConstSpan(tokens_).first(chunk.end);
      next.start = chunk.start;
      next.block_table = chunk.blocks;
      next.slot = chunk.slot;
      next.tails_from_block = chunk.tails_from_block;
      next.last_token_from = chunk.last_token_from;
    }
    return all;
  }

 private:
  const std::vector<Chunk> chunks_;
  std::vector<TokenId> tokens_;
};

TEST(PackedStepTest, Packs) {
  struct Row {
    std::string name;
    std::vector<Chunk> chunks;
    PackingOptions options;
    std::string batch;  // by position
    std::string block_table;
    std::string ids;
    std::string pending = "", pending_from = "";
  };
  PackingOptions two_taps = kOptions, no_tails = kOptions;
  two_taps.input_taps = 2;
  no_tails.has_tails = false;
  const std::vector<Row> rows = {
      {"nothing", {}, kOptions, "", "", ""},
      {"a prompt", {{0, 3, {7}, 2}}, kOptions, "2<2: 0 1 2", "7", "100 101 102"},
      {"to a block's end", {{0, 4, {7}, 2}}, kOptions, "2<2: 0 1 2 3>17", "7", "100 101 102 103"},
      {"over two ends",
       {{3, 8, {7, 9}, 0}},
       kOptions,
       "0<0: 3>17 4 5 6 7>19",
       "7 9",
       "103 104 105 106 107"},
      {"without tails", {{3, 5, {7, 9}, 4}}, no_tails, "4: 3 4", "7 9", "103 104"},
      {"from a block's tails", {{4, 5, {7, 9}, 3, 7}}, kOptions, "3<17: 4", "7 9", "104"},
      {"several, of different lengths",
       {{5, 6, {7, 9}, 1}, {0, 2, {3}, 0}, {8, 9, {4, 5, 6}, 9}},
       kOptions,
       "1<1: 5; 0<0: 0 1; 9<9: 8",
       "7 9 0 3 0 0 4 5 6",
       "105 100 101 108"},
      {"two taps, which see the token before the chunk",
       {{0, 2, {7}, 0}, {2, 4, {8}, 1}},
       two_taps,
       "0<0: 0 1; 1<1: 2 3>18",
       "7 8",
       "-1 100 100 101 101 102 102 103"},
      {"pending tokens",
       {{2, 3, {7}, 0, {}, 5}, {2, 4, {8}, 1}, {4, 6, {9, 8}, 2, {}, 0}},
       two_taps,
       "0<0: 2; 1<1: 2 3>18; 2<2: 4 5",
       "7 0 8 0 9 8",
       "101 102 101 102 102 103 103 104 104 105",
       "1 9",
       "5 0"},
      {"up to the longest context",
       {{11, 12, {1, 2, 3}, 0}},
       kOptions,
       "0<0: 11>13",
       "1 2 3",
       "111"},
  };
  for (const Row& row : rows) {
    const Chunks chunks(row.chunks);
    const PackedStep packed(chunks.Get(), row.options);
    const Batch batch = packed.batch();
    const std::vector<int32_t> positions(batch.position, batch.position + batch.tokens);
    EXPECT_EQ(Text(batch, positions), row.batch) << row.name;
    EXPECT_EQ(
        Join({batch.block_table, static_cast<size_t>(batch.sequences * batch.block_table_stride)}),
        row.block_table)
        << row.name;
    EXPECT_EQ(Join(packed.ids()), row.ids) << row.name;
    EXPECT_EQ(Join(packed.pending()), row.pending) << row.name;
    EXPECT_EQ(Join(packed.pending_from()), row.pending_from) << row.name;
    int64_t longest = 0;
    for (const Chunk& chunk : row.chunks) longest = std::max<int64_t>(longest, chunk.end);
    EXPECT_EQ(batch.longest, longest) << row.name;
  }
}

TEST(PackedStepDeathTest, ChunksKeepTheRules) {
  struct Row {
    Chunk chunk;
    std::string message;
  };
  const std::vector<Row> rows = {
      {{3, 3, {1}}, "without positions"},
      {{-1, 3, {1}}, "without positions"},
      {{12, 13, {1, 2, 3, 4}}, "longer than max_context_length"},
      {{0, 5, {1}}, "shorter than its sequence"},
      {{3, 5, {1, 2}, 0, 1}, "where no block ends"},
      {{0, 5, {1, 2}, 0, 1}, "where no block ends"},
      {{4, 5, {1, 2}, 0, 50}, "no block"},
      {{4, 5, {1, 2}, 0, -1}, "no block"},
  };
  for (const Row& row : rows) {
    const Chunks chunks({row.chunk});
    EXPECT_DEATH(PackedStep(chunks.Get(), kOptions), row.message);
  }
}

// Tails are left after positions 3, 7, 11 ..., in slots 100, 101 ... of the first sequence, 110,
// 111
// ... of the next. The spare slot is 99.
TEST(WantedRowsTest, AreRunsWithWhatTheyDependOn) {
  struct Sequence {
    int32_t start, rows;
    std::optional<int32_t> tail_source = {};  // none: its own slot
  };
  struct Row {
    std::string name;
    std::vector<Sequence> sequences;
    std::vector<int32_t> wanted;
    int64_t taps;
    std::string runs;         // by row
    int32_t saves_every = 4;  // positions
  };
  const std::vector<Row> rows = {
      {"none", {{0, 6}}, {}, 1, ""},
      {"the last", {{0, 6}}, {5}, 1, "0: 5"},
      {"two apart", {{0, 6}}, {0, 3, 4}, 1, "0: 0; 0: 3 4"},
      {"of two sequences", {{0, 3}, {5, 2}}, {1, 2, 3}, 1, "0: 1 2; 1: 3"},
      {"of the second only", {{0, 3}, {5, 2}}, {4}, 1, "1: 4"},

      // Two taps: two rows before each one that counts.
      {"all of a short one", {{0, 3}}, {2}, 2, "0<0: 0 1 2"},
      {"what the last depends on", {{0, 6}}, {5}, 2, "0<99: 1 2 3>100 4 5"},
      {"none wanted: what the tails depend on",
       {{0, 10}},
       {},
       2,
       "100<99: 1 2 3; 0<99: 5 6 7>101 8 9"},
      {"a wanted one in the middle goes on until tails are left",
       {{0, 12}},
       {1},
       2,
       "100<0: 0 1 2 3; 101<99: 5 6 7; 0<99: 9 10 11>102"},
      {"and further where they are left seldom",
       {{0, 20}},
       {1},
       2,
       "100<0: 0 1 2 3 4 5 6 7; 101<99: 13 14 15; 0<99: 17 18 19",
       /*saves_every=*/8},
      {"resumed: no run goes on from tails that another one leaves",
       {{2, 10}},
       {9},
       2,
       "0<0: 0 1>100 2 3 4 5>101 6 7 8 9>102"},
      {"resumed from another slot",
       {{2, 10, 50}},
       {9},
       2,
       "100<50: 0 1; 101<99: 3 4 5; 0<99: 7 8 9>102"},
      {"resumed, its first rows not needed", {{4, 4}}, {3}, 2, "0<99: 1 2 3>101"},
      {"two sequences", {{9, 1}, {0, 5}}, {0, 5}, 2, "0<0: 0; 1<99: 2 3 4>110 5"},
      // Three taps: four rows.
      {"three taps", {{16, 7}}, {6}, 3, "0<0: 0 1 2 3>104 4 5 6"},
  };
  for (const Row& row : rows) {
    kernels::PackedBatch packed(/*block_table_stride=*/2, /*has_tails=*/true);
    for (size_t s = 0; s < row.sequences.size(); ++s) {
      const Sequence& sequence = row.sequences[s];
      const auto slot = static_cast<int32_t>(s);
      packed.AddSequence(slot, sequence.tail_source.value_or(slot), {slot, slot + 10});
      for (int32_t i = sequence.start; i < sequence.start + sequence.rows; ++i) {
        const bool saves = (i + 1) % row.saves_every == 0;
        packed.AddRow(i, saves ? 100 + 10 * slot + i / row.saves_every : -1);
      }
    }
    const Batch all = packed.batch();
    const WantedRows wanted(all, row.wanted, row.taps, /*spare_slot=*/99);
    const Batch batch = wanted.batch();
    EXPECT_EQ(Text(batch, wanted.rows()), row.runs) << row.name;
    ASSERT_EQ(batch.tokens, static_cast<int64_t>(wanted.rows().size())) << row.name;
    for (int64_t n = 0; n < batch.tokens; ++n) {
      const int32_t from = wanted.rows()[n];
      EXPECT_EQ(batch.position[n], all.position[from]) << row.name;
      for (int64_t block = 0; block < 2; ++block) {
        EXPECT_EQ(batch.block_table[batch.row_sequence[n] * 2 + block],
                  all.block_table[all.row_sequence[from] * 2 + block])
            << row.name;
      }
    }
  }
}

}  // namespace
}  // namespace ddl
