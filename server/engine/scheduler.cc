#include "server/engine/scheduler.h"

#include <algorithm>

#include "model/check.h"

namespace ddl {
namespace {

void AddChunk(Sequence* sequence, int32_t length, StepPlan* plan) {
  const int32_t start = sequence->num_computed();
  plan->chunks.push_back({sequence, start, start + length});
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, BlockManager* blocks)
    : options_(options), blocks_(blocks) {
  DDL_CHECK(options.max_running_sequences > 0, "nothing could ever run");
  DDL_CHECK(options.max_step_tokens >= options.max_running_sequences,
            "decodes alone would exceed a step");
  for (int32_t slot = options.max_running_sequences - 1; slot >= 0; --slot) {
    free_slots_.push_back(slot);
  }
}

void Scheduler::Add(Sequence* sequence) {
  DDL_CHECK(blocks_->BlocksFor(sequence->num_tokens()) <= blocks_->num_blocks(),
            "a sequence that can never run");
  DDL_CHECK(waiting_.insert(sequence).second, "a sequence was added twice");
}

void Scheduler::Remove(Sequence* sequence) {
  if (sequence->running()) {
    Release(sequence);
  } else {
    DDL_CHECK(waiting_.erase(sequence) == 1, "a sequence that was never added");
  }
}

StepPlan Scheduler::Schedule() {
  StepPlan plan;
  ReserveForDecodes(&plan);

  std::vector<Sequence*> prefills;
  for (Sequence* sequence : running_) {
    if (sequence->IsDecode()) {
      AddChunk(sequence, 1, &plan);
      ++plan.decode_tokens;
    } else {
      prefills.push_back(sequence);
    }
  }

  // Merges those that are in the middle of their prompt with those that wait, by rank.
  auto next = prefills.begin();
  bool admitting = true;
  int32_t budget = options_.max_step_tokens - plan.decode_tokens;
  while (budget > 0) {
    Sequence* sequence = next != prefills.end() ? *next : nullptr;
    if (admitting && !waiting_.empty() &&
        (sequence == nullptr || ByRank()(*waiting_.begin(), sequence))) {
      sequence = *waiting_.begin();
      admitting = TryStart(sequence);
      if (!admitting) continue;
    } else if (sequence != nullptr) {
      ++next;
    } else {
      break;
    }
    const int32_t length = std::min(budget, sequence->num_remaining());
    AddChunk(sequence, length, &plan);
    plan.prefill_tokens += length;
    budget -= length;
  }
  return plan;
}

// Gives every decode the block of its next position. A victim ranks after the sequence that
// grows, and has therefore not been given anything in this step.
void Scheduler::ReserveForDecodes(StepPlan* plan) {
  for (auto it = running_.begin(); it != running_.end();) {
    Sequence* const sequence = *it;
    while (sequence->running() && sequence->IsDecode() && !sequence->ReserveBlocks(*blocks_)) {
      Sequence* const victim = *running_.rbegin();
      DDL_CHECK(running_.size() > 1, "a sequence outgrew the whole cache");
      Release(victim);
      waiting_.insert(victim);
      plan->preempted.push_back(victim);
    }
    it = running_.upper_bound(sequence);
  }
}

bool Scheduler::TryStart(Sequence* sequence) {
  const int32_t wanted = blocks_->BlocksFor(sequence->num_tokens()) + num_growing_;
  if (free_slots_.empty() || wanted > blocks_->num_free()) return false;
  DDL_CHECK(sequence->ReserveBlocks(*blocks_), "the blocks were counted");
  sequence->set_slot(free_slots_.back());
  free_slots_.pop_back();
  if (sequence->generates()) ++num_growing_;
  waiting_.erase(sequence);
  running_.insert(sequence);
  return true;
}

void Scheduler::Release(Sequence* sequence) {
  DDL_CHECK(running_.erase(sequence) == 1, "a running sequence that nobody started");
  if (sequence->generates()) --num_growing_;
  free_slots_.push_back(sequence->slot());
  sequence->Release();
}

}  // namespace ddl
