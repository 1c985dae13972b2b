#include "server/engine/in_flight_step.h"

#include <algorithm>

namespace ddl {

void InFlightStep::Reserve(const StepPlan& plan) {
  size_t num_blocks = 0;
  for (const ScheduledChunk& scheduled : plan.chunks) {
    num_blocks += scheduled.sequence->block_table().size();
  }
  block_tables.reserve(num_blocks);  // the chunks point into it
  chunks.reserve(plan.chunks.size());
}

SequenceChunk InFlightStep::Add(const ScheduledChunk& scheduled, ActiveRequest& request,
                                RequestPart& part, TokenId vocab_size) {
  const Sequence& sequence = *scheduled.sequence;
  const bool last = scheduled.end == sequence.num_tokens();
  SequenceChunk chunk = sequence.ChunkUpTo(scheduled.end);
  const size_t first_block = block_tables.size();
  block_tables.insert(block_tables.end(), chunk.block_table.begin(), chunk.block_table.end());
  chunk.block_table = absl::MakeConstSpan(block_tables).subspan(first_block);
  if (last && sequence.num_pending() > 0) chunk.last_token_from = part.chunk;
  part.chunk = static_cast<int32_t>(chunks.size());
  chunks.push_back({.scheduled = scheduled,
                    .request = &request,
                    .part = &part,
                    .run = sequence.num_runs(),
                    .computed = {}});

  chunk.ddl_stats = request.ddl_stats;
  if (part.pooler.has_value()) {
    chunk.hidden = part.pooler->RowsNeeded(last);
    chunk.readout = request.readout;
  } else if (part.completion.has_value() && last) {
    chunk.sample = part.completion->NextSample(sequence.prompt(), sequence.generated());
  }
  const int32_t targets_end = std::min(scheduled.end + 1, sequence.num_prompt_tokens());
  if (part.score_logprobs >= 0 && scheduled.start + 1 < targets_end) {
    chunk.score = {.targets = sequence.tokens().subspan(scheduled.start + 1,
                                                        targets_end - scheduled.start - 1),
                   .vocab_size = vocab_size,
                   .logprobs = part.score_logprobs};
  }
  return chunk;
}

void InFlightStep::MarkBegun(Scheduler* scheduler) {
  for (Chunk& chunk : chunks) {
    Sequence& sequence = *chunk.scheduled.sequence;
    const bool samples =
        chunk.part->completion.has_value() && chunk.scheduled.end == sequence.num_tokens();
    chunk.computed = scheduler->MarkBegun(chunk.scheduled);
    if (samples && !chunk.part->completion->IsFullAt(sequence.num_generated() + 1)) {
      sequence.AppendPending();
    }
  }
}

bool InFlightStep::MayBeFollowed(absl::Span<const SequenceChunk> runner_chunks) const {
  return std::none_of(runner_chunks.begin(), runner_chunks.end(), NeedsHost) &&
         std::ranges::none_of(chunks, [](const Chunk& chunk) {
           return chunk.scheduled.sequence->num_pending() > 0 &&
                  chunk.part->completion->depends_on_tokens();
         });
}

}  // namespace ddl
