#include "server/engine/warm_up.h"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <vector>

#include "server/engine/scheduler.h"
#include "server/engine/sequence.h"

namespace ddl {
namespace {

absl::Status RunStep(Scheduler& scheduler, ModelRunner& runner) {
  const StepPlan plan = scheduler.Schedule(/*prefill_budget=*/0);
  std::vector<SequenceChunk> chunks;
  for (const ScheduledChunk& scheduled : plan.chunks) {
    SequenceChunk& chunk = chunks.emplace_back(scheduled.sequence->ChunkUpTo(scheduled.end));
    chunk.sample.emplace().vocab_size = static_cast<TokenId>(runner.description().vocab_size);
    chunk.sample->index = scheduled.sequence->num_generated();
  }
  const auto outputs = runner.Forward(chunks);
  if (!outputs.ok()) return outputs.status();
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    const ChunkOutput& output = (*outputs)[i];
    if (!output.status.ok()) return output.status;
    Sequence& sequence = *plan.chunks[i].sequence;
    sequence.MarkBegun(plan.chunks[i].end);
    if (sequence.num_remaining() == 0) sequence.Append(output.sampled->id);
  }
  return absl::OkStatus();
}

// Runs sequences of these lengths for so many steps. Every block is free again afterwards, in
// case of a failure too: the sequences own them.
absl::Status RunSteps(int steps, const std::vector<int32_t>& lengths, const WarmUpOptions& options,
                      ModelRunner& runner, BlockManager& blocks) {
  std::deque<Sequence> sequences;
  Scheduler scheduler({.max_step_tokens = options.max_step_tokens,
                       .max_running_sequences = options.max_running_sequences,
                       .num_slots = runner.description().max_sequences},
                      &blocks);
  for (const int32_t length : lengths) {
    const SequenceRank rank = {.priority = Priority::kNormal, .request_id = sequences.size()};
    scheduler.Add(&sequences.emplace_back(rank, std::vector<TokenId>(length, 0),
                                          SequenceOptions{.generates = true}));
  }
  for (int step = 0; step < steps; ++step) {
    if (absl::Status status = RunStep(scheduler, runner); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WarmUp(const WarmUpOptions& options, ModelRunner& runner, BlockManager& blocks) {
  const int64_t capacity = static_cast<int64_t>(blocks.num_blocks()) * blocks.block_size();
  const int32_t longest = std::min<int64_t>(options.max_context_length, capacity);
  std::vector<int32_t> prompts;
  for (int32_t left = options.max_step_tokens; left > 0; left -= prompts.back()) {
    prompts.push_back(std::min(left, longest));
  }
  absl::Status status = RunSteps(1, prompts, options, runner, blocks);
  if (!status.ok()) return status;

  // One step to compute the prompts, one to decode.
  const std::vector<int32_t> ones(options.max_running_sequences, 1);
  return RunSteps(2, ones, options, runner, blocks);
}

}  // namespace ddl
