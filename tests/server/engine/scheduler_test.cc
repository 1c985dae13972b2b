#include "server/engine/scheduler.h"

#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/engine/block_manager.h"
#include "server/engine/sequence.h"

namespace ddl {
namespace {

struct Arrival {
  int32_t prompt = 1;     // tokens
  int32_t generates = 0;  // tokens; 0: an embed input
  Priority priority = Priority::kNormal;
  int arrives = 0;  // before this step
};

struct Row {
  const char* name;
  SchedulerOptions options;
  int32_t blocks;  // of 4 tokens each
  std::vector<Arrival> arrivals;
  // Each step's chunks as "sequence[start,end)", then "!sequence" for those preempted.
  std::vector<std::string> steps;
};

std::string ToString(const StepPlan& plan) {
  std::string text;
  for (const ScheduledChunk& chunk : plan.chunks) {
    absl::StrAppend(&text, text.empty() ? "" : " ", chunk.sequence->rank().request_id, "[",
                    chunk.start, ",", chunk.end, ")");
  }
  for (const Sequence* sequence : plan.preempted) {
    absl::StrAppend(&text, " !", sequence->rank().request_id);
  }
  return text;
}

// Computes what the plan says, as the engine would: samples a token where a generating sequence
// has none left to compute, and removes what is done.
void Compute(const StepPlan& plan, const std::vector<Arrival>& arrivals, Scheduler* scheduler) {
  for (const ScheduledChunk& chunk : plan.chunks) {
    scheduler->MarkBegun(chunk);
    scheduler->MarkComputed(chunk);
    if (chunk.sequence->num_remaining() > 0) continue;
    const Arrival& arrival = arrivals[chunk.sequence->rank().request_id];
    if (arrival.generates > 0) chunk.sequence->Append(0);
    if (chunk.sequence->num_generated() == arrival.generates) scheduler->Remove(chunk.sequence);
  }
}

constexpr Priority kHigh = Priority::kHigh, kNormal = Priority::kNormal, kLow = Priority::kLow;

const Row kRows[] = {
    {"nothing to do", {8, 8}, 8, {}, {""}},
    {"one prompt in one step, then its decodes",
     {8, 8},
     8,
     {{5, 3}},
     {"0[0,5)", "0[5,6)", "0[6,7)", ""}},
    {"a prompt of the step's size", {8, 8}, 8, {{8, 1}}, {"0[0,8)", ""}},
    {"a prompt one longer is cut", {8, 8}, 8, {{9, 1}}, {"0[0,8)", "0[8,9)", ""}},
    {"chunks fill the rest of the step",
     {8, 8},
     16,
     {{5, 1}, {9, 1}, {2, 1}},
     {"0[0,5) 1[0,3)", "1[3,9) 2[0,2)", ""}},
    {"decodes come first, whoever they are",
     {8, 8},
     16,
     {{20}, {1, 4, kLow}},
     {"0[0,8)", "1[0,1) 0[8,15)", "1[1,2) 0[15,20)", "1[2,3)", "1[3,4)", ""}},
    {"a long prompt does not stall a stream",
     {4, 4},
     16,
     {{2, 5}, {12, 1, kNormal, 1}},
     {"0[0,2)", "0[2,3) 1[0,3)", "0[3,4) 1[3,6)", "0[4,5) 1[6,9)", "0[5,6) 1[9,12)", ""}},
    {"generates and embeds share steps",
     {8, 8},
     16,
     {{3}, {2, 2}, {4}, {1, 2}},
     {"0[0,3) 1[0,2) 3[0,1) 2[0,2)", "1[2,3) 3[1,2) 2[2,4)", ""}},
    {"first come first served",
     {4, 4},
     16,
     {{4, 1}, {4, 1}, {4, 1}},
     {"0[0,4)", "1[0,4)", "2[0,4)", ""}},
    {"priority goes before arrival",
     {4, 4},
     16,
     {{4, 1, kLow}, {4, 1}, {4, 1, kHigh}},
     {"2[0,4)", "1[0,4)", "0[0,4)", ""}},
    {"a higher priority overtakes a prompt in its middle",
     {4, 4},
     16,
     {{9, 1}, {5, 1, kHigh, 1}},
     {"0[0,4)", "1[0,4)", "1[4,5) 0[4,7)", "0[7,9)", ""}},
    // Slots.
    {"no more sequences than slots",
     {8, 2},
     16,
     {{1, 3}, {1, 2}, {1, 1}},
     {"0[0,1) 1[0,1)", "0[1,2) 1[1,2)", "0[2,3) 2[0,1)", ""}},
    {"a running sequence keeps its slot from a higher priority",
     {8, 1},
     16,
     {{1, 3}, {1, 1, kHigh, 1}},
     {"0[0,1)", "0[1,2)", "0[2,3)", "1[0,1)", ""}},
    // Blocks of 4 tokens.
    {"the whole cache for one", {8, 8}, 2, {{8}}, {"0[0,8)", ""}},
    {"a prompt waits for all its blocks",
     {16, 8},
     4,
     {{8}, {9}, {1}},
     {"0[0,8)", "1[0,9) 2[0,1)", ""}},
    {"nobody overtakes the one that waits for blocks",
     {8, 8},
     3,
     {{12}, {12}, {1}},
     {"0[0,8)", "0[8,12)", "1[0,8)", "1[8,12)", "2[0,1)", ""}},
    {"a start leaves a block to each that grows",
     {8, 8},
     3,
     {{4, 4}, {5}, {4}},
     {"0[0,4)", "0[4,5)", "0[5,6)", "0[6,7)", "1[0,5) 2[0,3)", "2[3,4)", ""}},
    {"too small for two, so one waits",
     {16, 8},
     4,
     {{7, 4}, {7, 3}},
     {"0[0,7)", "0[7,8)", "0[8,9)", "0[9,10)", "1[0,7)", "1[7,8)", "1[8,9)", ""}},
    {"the youngest is preempted, keeps its tokens, and is computed again",
     {16, 8},
     5,
     {{7, 4}, {7, 3}},
     {"0[0,7) 1[0,7)", "0[7,8) 1[7,8)", "0[8,9) !1", "0[9,10)", "1[0,9)", ""}},
    {"the lowest priority is preempted, be it the oldest",
     {16, 8},
     5,
     {{7, 4, kLow}, {7, 3}},
     {"1[0,7) 0[0,7)", "1[7,8) 0[7,8)", "1[8,9) !0", "0[0,9)", "0[9,10)", ""}},
    {"a prompt in its middle is preempted",
     {4, 2},
     9,
     {{7, 7}, {24, 1}},
     {"0[0,4)", "0[4,7) 1[0,1)", "0[7,8) 1[1,4)", "0[8,9) 1[4,7)", "0[9,10) 1[7,10)",
      "0[10,11) 1[10,13)", "0[11,12) 1[13,16)", "0[12,13) !1", "1[0,4)", "1[4,8)", "1[8,12)",
      "1[12,16)", "1[16,20)", "1[20,24)", ""}},
};

TEST(SchedulerTest, Plans) {
  for (const Row& row : kRows) {
    SCOPED_TRACE(row.name);
    BlockManager blocks(row.blocks, 4);
    std::deque<Sequence> sequences;
    Scheduler scheduler(row.options, &blocks);
    for (size_t step = 0; step < row.steps.size(); ++step) {
      for (size_t i = 0; i < row.arrivals.size(); ++i) {
        const Arrival& arrival = row.arrivals[i];
        if (arrival.arrives != static_cast<int>(step)) continue;
        scheduler.Add(&sequences.emplace_back(
            SequenceRank{.priority = arrival.priority, .request_id = i, .index = 0},
            std::vector<TokenId>(arrival.prompt),
            SequenceOptions{.generates = arrival.generates > 0}));
      }
      const StepPlan plan = scheduler.Schedule(/*prefill_budget=*/64);
      EXPECT_EQ(ToString(plan), row.steps[step]) << "step " << step;
      EXPECT_EQ(plan.decode_tokens + plan.prefill_tokens,
                [&] {
                  int32_t sum = 0;
                  for (const ScheduledChunk& chunk : plan.chunks) sum += chunk.end - chunk.start;
                  return sum;
                }())
          << "step " << step;
      Compute(plan, row.arrivals, &scheduler);
    }
    EXPECT_EQ(scheduler.num_running() + scheduler.num_waiting(), 0);
    EXPECT_EQ(blocks.num_free(), row.blocks);
  }
}

Sequence* AddSequence(int id, int32_t prompt, const SequenceOptions& options,
                      std::deque<Sequence>* sequences, Scheduler* scheduler,
                      Priority priority = kNormal) {
  const SequenceRank rank = {
      .priority = priority, .request_id = static_cast<uint64_t>(id), .index = 0};
  scheduler->Add(&sequences->emplace_back(rank, std::vector<TokenId>(prompt, id), options));
  return &sequences->back();
}

// Computes a plan, samples a token wherever one is due, and says what the plan was.
std::string Step(Scheduler& scheduler, int32_t prefill_budget = 64) {
  const StepPlan plan = scheduler.Schedule(prefill_budget);
  for (const ScheduledChunk& chunk : plan.chunks) {
    scheduler.MarkBegun(chunk);
    scheduler.MarkComputed(chunk);
    if (chunk.sequence->num_remaining() == 0 && chunk.sequence->generates()) {
      chunk.sequence->Append(7);
    }
  }
  return ToString(plan);
}

TEST(SchedulerTest, RationsWhatRunsBesideDecodes) {
  struct Row {
    int32_t budget;
    const char* step;
  };
  // Blocks of 4, steps of 32, one decode.
  const Row rows[] = {{0, "0[2,3) 1[0,4)"},   {4, "0[2,3) 1[0,4)"},   {5, "0[2,3) 1[0,5)"},
                      {31, "0[2,3) 1[0,31)"}, {32, "0[2,3) 1[0,31)"}, {1000, "0[2,3) 1[0,31)"}};
  for (const Row& row : rows) {
    BlockManager blocks(64, 4);
    std::deque<Sequence> sequences;
    Scheduler scheduler({32, 8}, &blocks);
    AddSequence(0, 2, {.generates = true}, &sequences, &scheduler);
    EXPECT_EQ(Step(scheduler, row.budget), "0[0,2)") << "without decodes there is no bound";
    EXPECT_EQ(scheduler.num_decodes(), 1);
    AddSequence(1, 100, {}, &sequences, &scheduler);
    EXPECT_EQ(Step(scheduler, row.budget), row.step) << row.budget;
  }
}

TEST(SchedulerTest, EachSideHasSlotsThatTheOtherCannotTake) {
  BlockManager blocks(64, 4);
  std::deque<Sequence> sequences;
  Scheduler scheduler({32, 2}, &blocks);  // 3 slots
  for (int i = 0; i < 4; ++i) AddSequence(i, 1, {.generates = true}, &sequences, &scheduler);
  EXPECT_EQ(Step(scheduler), "0[0,1) 1[0,1)");
  AddSequence(9, 1, {}, &sequences, &scheduler);
  EXPECT_EQ(Step(scheduler), "0[1,2) 1[1,2) 9[0,1)");
}

TEST(SchedulerTest, SidesTakeTurnsByWhatTheyWereServed) {
  BlockManager blocks(64, 4);
  std::deque<Sequence> sequences;
  Scheduler scheduler({8, 4}, &blocks);
  AddSequence(0, 24, {}, &sequences, &scheduler);
  AddSequence(1, 16, {.generates = true}, &sequences, &scheduler);
  EXPECT_EQ(Step(scheduler), "0[0,8)");
  EXPECT_EQ(Step(scheduler), "1[0,8)");
  EXPECT_EQ(Step(scheduler), "0[8,16)") << "as much each, so by arrival";
  EXPECT_EQ(Step(scheduler), "1[8,16)");
  EXPECT_EQ(Step(scheduler), "1[16,17) 0[16,23)");
}

TEST(SchedulerTest, WhileOneSideWaitsForBlocksTheOtherGoesOnOneAtATime) {
  BlockManager blocks(8, 4);
  std::deque<Sequence> sequences;
  Scheduler scheduler({32, 4}, &blocks);
  Sequence* const stream = AddSequence(0, 17, {.generates = true}, &sequences, &scheduler);
  EXPECT_EQ(Step(scheduler), "0[0,17)");
  EXPECT_EQ(Step(scheduler), "0[17,18)") << "a side that wants nothing saves up nothing";
  AddSequence(1, 14, {.generates = true}, &sequences, &scheduler);
  for (int i = 2; i < 5; ++i) AddSequence(i, 4, {}, &sequences, &scheduler);
  // 3 blocks are left: too few for the prompt, and more than the inputs may have meanwhile.
  for (int i = 2; i < 4; ++i) {
    EXPECT_EQ(Step(scheduler), absl::StrCat("0[", 16 + i, ",", 17 + i, ") ", i, "[0,4)"));
    scheduler.Remove(&sequences[i]);
  }
  scheduler.Remove(stream);
  EXPECT_EQ(Step(scheduler), "1[0,14) 4[0,4)");
}

TEST(SchedulerTest, WhoIsPausedKeepsWhatNobodyNeeds) {
  BlockManager blocks(6, 4);
  std::deque<Sequence> sequences;
  Scheduler scheduler({32, 2}, &blocks);
  Sequence* const paused = AddSequence(0, 7, {.generates = true}, &sequences, &scheduler);
  EXPECT_EQ(Step(scheduler), "0[0,7)");
  scheduler.Pause(paused);
  EXPECT_EQ(Step(scheduler), "");
  EXPECT_EQ(scheduler.num_paused(), 1);
  EXPECT_EQ(blocks.num_used(), 2);
  Sequence* const other = AddSequence(1, 9, {.generates = true}, &sequences, &scheduler);
  EXPECT_EQ(Step(scheduler), "1[0,9)") << "there is room for both";
  scheduler.Resume(paused);
  EXPECT_EQ(Step(scheduler), "0[7,8) 1[9,10)");
  scheduler.Pause(paused);
  AddSequence(2, 8, {}, &sequences, &scheduler);
  EXPECT_EQ(Step(scheduler), "1[10,11) 2[0,8) !0") << "now its blocks are needed";
  EXPECT_EQ(paused->num_tokens(), 9) << "it keeps its tokens";
  EXPECT_EQ(scheduler.num_preempted(), 0) << "it does not wait to run";
  scheduler.Resume(paused);
  EXPECT_EQ(scheduler.num_preempted(), 1);
  scheduler.Remove(other);
  scheduler.Remove(&sequences[2]);
  EXPECT_EQ(Step(scheduler), "0[0,9)");
  EXPECT_EQ(scheduler.num_preempted() + scheduler.num_paused(), 0);
  scheduler.Pause(paused);
  scheduler.Remove(paused);
  EXPECT_EQ(blocks.num_free(), 6);
  EXPECT_EQ(scheduler.num_paused(), 0);
}

TEST(SchedulerTest, ASlotIsTakenFromThePausedOfTheSameSide) {
  BlockManager blocks(64, 4);
  std::deque<Sequence> sequences;
  Scheduler scheduler({32, 1}, &blocks);
  Sequence* const input = AddSequence(0, 40, {}, &sequences, &scheduler);
  Sequence* const prompt = AddSequence(1, 1, {.generates = true}, &sequences, &scheduler);
  Step(scheduler);
  Step(scheduler);
  scheduler.Pause(input);
  scheduler.Pause(prompt);
  AddSequence(2, 1, {.generates = true}, &sequences, &scheduler);
  EXPECT_EQ(Step(scheduler), "2[0,1) !1");
}

TEST(SchedulerTest, CompletionsWaitForTheirPromptAndShareIt) {
  BlockManager blocks(16, 4);
  std::deque<Sequence> sequences;
  PromptGroup group;
  Scheduler scheduler({6, 4}, &blocks);
  const SequenceOptions options = {.generates = true, .group = &group, .shares_prompt = true};
  for (int i = 0; i < 3; ++i) AddSequence(i, 10, options, &sequences, &scheduler);
  AddSequence(9, 2, {.generates = true}, &sequences, &scheduler, kLow);
  EXPECT_EQ(Step(scheduler), "0[0,6)");
  EXPECT_EQ(Step(scheduler), "0[6,10) 9[0,2)") << "who waits for a prompt is in nobody's way";
  EXPECT_EQ(Step(scheduler), "0[10,11) 9[2,3) 1[8,10) 2[8,10)");
  EXPECT_EQ(blocks.num_used(), 2 + 3 + 1);
  for (int i = 1; i < 3; ++i) {
    EXPECT_EQ(sequences[i].block_table().first(2), sequences[0].block_table().first(2));
    EXPECT_NE(sequences[i].block_table()[2], sequences[0].block_table()[2]);
  }
  for (Sequence& sequence : sequences) scheduler.Remove(&sequence);
  EXPECT_EQ(blocks.num_free(), 16);
  EXPECT_TRUE(group.running.empty());
}

TEST(SchedulerTest, WhenNobodyHasThePromptTheNextComputesIt) {
  BlockManager blocks(16, 4);
  std::deque<Sequence> sequences;
  PromptGroup group;
  Scheduler scheduler({6, 4}, &blocks);
  const SequenceOptions options = {.generates = true, .group = &group, .shares_prompt = true};
  for (int i = 0; i < 2; ++i) AddSequence(i, 10, options, &sequences, &scheduler);
  EXPECT_EQ(Step(scheduler), "0[0,6)");
  scheduler.Remove(&sequences[0]);
  EXPECT_EQ(Step(scheduler), "1[0,6)");
}

TEST(SchedulerTest, WhoWaitsCanRise) {
  BlockManager blocks(64, 4);
  std::deque<Sequence> sequences;
  Scheduler scheduler({4, 4}, &blocks);
  Sequence* const low = AddSequence(0, 4, {}, &sequences, &scheduler, kLow);
  AddSequence(1, 4, {}, &sequences, &scheduler);
  scheduler.Promote(low);
  scheduler.Promote(low);
  scheduler.Promote(low);
  EXPECT_EQ(low->rank().priority, kHigh);
  EXPECT_EQ(Step(scheduler), "0[0,4)");
}

TEST(SchedulerTest, MatchesPrefixesOnlyWhenAllowed) {
  for (const bool cache : {false, true}) {
    for (const bool reads : {false, true}) {
      BlockManager blocks(16, 4);
      std::deque<Sequence> sequences;
      Scheduler scheduler(
          {.max_step_tokens = 32, .max_running_sequences = 4, .prefix_cache = cache}, &blocks);
      Sequence* const first = AddSequence(0, 9, {}, &sequences, &scheduler);
      Step(scheduler);
      scheduler.Remove(first);
      EXPECT_EQ(blocks.num_cached(), cache ? 2 : 0);
      const SequenceRank rank = {.priority = kNormal, .request_id = 1, .index = 0};
      scheduler.Add(&sequences.emplace_back(rank, std::vector<TokenId>(9, 0),
                                            SequenceOptions{.reads_prefix_cache = reads}));
      const StepPlan plan = scheduler.Schedule(0);
      EXPECT_EQ(ToString(plan), cache && reads ? "1[8,9)" : "1[0,9)");
      EXPECT_EQ(plan.starts.at(0).looked_up, cache && reads);
      EXPECT_EQ(plan.starts.at(0).newly_found, cache && reads ? 8 : 0);
      const SequenceChunk chunk = plan.chunks[0].sequence->ChunkUpTo(9);
      EXPECT_EQ(chunk.tails_from_block.has_value(), cache && reads);
      if (cache && reads) {
        EXPECT_EQ(*chunk.tails_from_block, chunk.block_table[1]);
      }
    }
  }
}

}  // namespace
}  // namespace ddl
