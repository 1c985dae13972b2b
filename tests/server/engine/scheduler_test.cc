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

// Computes what the plan says, as the engine would: draws a token where a generating sequence
// has none left to compute, and removes what is done.
void Compute(const StepPlan& plan, const std::vector<Arrival>& arrivals, Scheduler* scheduler) {
  for (const ScheduledChunk& chunk : plan.chunks) {
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

}  // namespace
}  // namespace ddl
