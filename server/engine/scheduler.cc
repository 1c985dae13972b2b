#include "server/engine/scheduler.h"

#include <iterator>

#include "base/check.h"

namespace ddl {
namespace {

void AddChunk(Sequence* sequence, int32_t length, StepPlan* plan) {
  const int32_t start = sequence->num_computed();
  plan->chunks.push_back({sequence, start, start + length});
}

// All of it is in flight, and nothing is to follow.
bool IsAtItsEnd(const Sequence* sequence) { return sequence->num_remaining() == 0; }

}  // namespace

// Who of one side is to be given positions next: of those in the middle of their prompt and
// those that wait, by rank.
class Scheduler::PrefillQueue {
 public:
  PrefillQueue(const Scheduler& scheduler, const RankedSequences& waiting)
      : scheduler_(scheduler), waiting_(waiting), next_waiting_(waiting.begin()) {}

  void AddRunning(Sequence* sequence) { running_.push_back(sequence); }  // by rank
  void StopStarting() { next_waiting_ = waiting_.end(); }
  bool empty() { return Front() == nullptr; }
  // Null when there is none.
  Sequence* Front() {
    while (next_waiting_ != waiting_.end() && scheduler_.WaitsForItsGroup(**next_waiting_)) {
      ++next_waiting_;
    }
    Sequence* const waiting = next_waiting_ != waiting_.end() ? *next_waiting_ : nullptr;
    Sequence* const running = next_running_ < running_.size() ? running_[next_running_] : nullptr;
    if (waiting == nullptr) return running;
    return running == nullptr || ByRank()(waiting, running) ? waiting : running;
  }
  // Before the front starts, and so no longer waits, or when it has been served.
  void Pop() {
    if (Front()->state() == SequenceState::kWaiting) {
      ++next_waiting_;
    } else {
      ++next_running_;
    }
  }

 private:
  const Scheduler& scheduler_;
  std::vector<Sequence*> running_;
  size_t next_running_ = 0;
  const RankedSequences& waiting_;
  RankedSequences::const_iterator next_waiting_;
};

Scheduler::Scheduler(const SchedulerOptions& options, BlockManager* blocks)
    : options_(options), blocks_(blocks) {
  DDL_CHECK(options.max_running_sequences > 0, "nothing could ever run");
  DDL_CHECK(options.max_step_tokens >= options.max_running_sequences,
            "decodes alone would exceed a step");
  const int32_t slots = options.num_slots.value_or(SlotsFor(options.max_running_sequences));
  DDL_CHECK(slots > 0, "nothing could ever run");
  for (int32_t slot = slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

void Scheduler::Add(Sequence* sequence) {
  DDL_CHECK(blocks_->BlocksFor(sequence->num_tokens()) <= blocks_->num_blocks(),
            "a sequence that can never run");
  DDL_CHECK(sequence->state() == SequenceState::kNew, "a sequence was added twice");
  BeginToWait(sequence);
}

void Scheduler::Remove(Sequence* sequence) {
  switch (sequence->state()) {
    case SequenceState::kNew:
      break;
    case SequenceState::kWaiting:
      EndToWait(sequence);
      break;
    case SequenceState::kRunning:
      EndToRun(sequence);
      break;
    case SequenceState::kPaused:
      --num_paused_;
      holding_.erase(sequence);
      break;
  }
  if (sequence->holds_slot()) Free(sequence);
  sequence->set_state(SequenceState::kNew);
}

void Scheduler::Pause(Sequence* sequence) {
  DDL_CHECK(sequence->state() != SequenceState::kPaused, "a sequence was paused twice");
  if (sequence->state() == SequenceState::kRunning) {
    EndToRun(sequence);
    holding_.insert(sequence);
  } else {
    EndToWait(sequence);
  }
  sequence->set_state(SequenceState::kPaused);
  ++num_paused_;
}

void Scheduler::Resume(Sequence* sequence) {
  DDL_CHECK(sequence->state() == SequenceState::kPaused, "a sequence that was not paused");
  --num_paused_;
  if (holding_.erase(sequence) == 1) {
    BeginToRun(sequence);
  } else {
    BeginToWait(sequence);
  }
}

void Scheduler::Promote(Sequence* sequence) {
  const Priority priority = sequence->rank().priority;
  if (priority == Priority::kHigh) return;
  EndToWait(sequence);
  sequence->set_priority(priority == Priority::kLow ? Priority::kNormal : Priority::kHigh);
  BeginToWait(sequence);
}

StepPlan Scheduler::Schedule(int32_t prefill_budget) {
  StepPlan plan;
  ReserveForDecodes(&plan);
  for (Sequence* sequence : running_) {
    if (!sequence->IsDecode()) continue;
    AddChunk(sequence, 1, &plan);
    ++plan.decode_tokens;
  }
  int32_t budget = options_.max_step_tokens - plan.decode_tokens;
  if (plan.decode_tokens > 0) {
    budget = std::min(budget, std::max(prefill_budget, blocks_->block_size()));
  }
  FillWithPrefills(budget, &plan);
  DDL_CHECK(!plan.chunks.empty() || num_running() + num_waiting() == 0 ||
                std::any_of(running_.begin(), running_.end(), IsAtItsEnd),
            "empty plan with runnable sequences");
  return plan;
}

void Scheduler::MarkComputed(const ScheduledChunk& chunk) {
  if (options_.prefix_cache) chunk.sequence->CacheFullBlocks(chunk.end);
}

int32_t Scheduler::num_decodes() const {
  return static_cast<int32_t>(std::count_if(running_.begin(), running_.end(),
                                            [](const Sequence* s) { return s->IsDecode(); }));
}

// Gives every decode the block of its next position. A victim ranks after the sequence that
// grows, and has therefore not been given anything in this step.
void Scheduler::ReserveForDecodes(StepPlan* plan) {
  for (auto it = running_.begin(); it != running_.end();) {
    Sequence* const sequence = *it;
    while (sequence->state() == SequenceState::kRunning && sequence->IsDecode() &&
           !sequence->ReserveBlocks(*blocks_)) {
      if (TakeFromPaused(nullptr, plan)) continue;
      Sequence* const victim = *running_.rbegin();
      DDL_CHECK(running_.size() > 1, "a sequence outgrew the whole cache");
      EndToRun(victim);
      Free(victim);
      victim->set_was_preempted(true);
      BeginToWait(victim);
      plan->preempted.push_back(victim);
    }
    it = running_.upper_bound(sequence);
  }
}

void Scheduler::FillWithPrefills(int32_t budget, StepPlan* plan) {
  PrefillQueue queues[] = {{*this, sides_[0].waiting}, {*this, sides_[1].waiting}};
  for (Sequence* sequence : running_) {
    if (!sequence->IsDecode() && !IsAtItsEnd(sequence))
      queues[sequence->generates() ? 0 : 1].AddRunning(sequence);
  }
  BalanceSides(!queues[0].empty(), !queues[1].empty());

  bool blocks_are_awaited = false;
  while (budget > 0 && !(queues[0].empty() && queues[1].empty())) {
    const bool second = queues[0].empty() ||
                        (!queues[1].empty() && (sides_[1].served < sides_[0].served ||
                                                (sides_[1].served == sides_[0].served &&
                                                 ByRank()(queues[1].Front(), queues[0].Front()))));
    PrefillQueue& queue = queues[second ? 1 : 0];
    Sequence* const sequence = queue.Front();
    queue.Pop();
    if (sequence->state() == SequenceState::kWaiting) {
      const bool gives_way = blocks_are_awaited && NumRunning(SideOf(*sequence)) > 0;
      const Start start = gives_way ? Start::kNoBlocks : TryStart(sequence, plan);
      if (start == Start::kNoBlocks) blocks_are_awaited = true;
      if (start != Start::kStarted) {
        queue.StopStarting();
        continue;
      }
    }
    const int32_t length = std::min(budget, sequence->num_remaining());
    AddChunk(sequence, length, plan);
    plan->prefill_tokens += length;
    budget -= length;
    SideOf(*sequence).served += length;
  }
}

int32_t Scheduler::NumRunning(const Side& side) const {
  return &side == &sides_[0] ? num_growing_ : num_running() - num_growing_;
}

// A side that wants nothing saves up nothing, and one that gets nothing no more than a step.
void Scheduler::BalanceSides(bool first_wants, bool second_wants) {
  int64_t& first = sides_[0].served;
  int64_t& second = sides_[1].served;
  first = std::max(first, second - (first_wants ? options_.max_step_tokens : 0));
  second = std::max(second, first - (second_wants ? options_.max_step_tokens : 0));
}

bool Scheduler::WaitsForItsGroup(const Sequence& sequence) const {
  const PromptGroup* const group = sequence.options().group;
  if (group == nullptr || !sequence.options().shares_prompt || group->running.empty()) {
    return false;
  }
  const int32_t shared = sequence.NumSharedBlocks(*blocks_) * blocks_->block_size();
  return std::ranges::none_of(
      group->running, [shared](const Sequence* other) { return other->num_computed() >= shared; });
}

Scheduler::Start Scheduler::TryStart(Sequence* sequence, StepPlan* plan) {
  SequenceStart start = {.sequence = sequence, .first = !sequence->has_run()};
  PromptGroup* const group = sequence->options().group;
  const int32_t shared = sequence->NumSharedBlocks(*blocks_);
  const Sequence* other = nullptr;  // whose prompt it can share
  if (group != nullptr && sequence->options().shares_prompt && !group->running.empty()) {
    other = *std::ranges::find_if(group->running, [&](const Sequence* running) {
      return running->num_computed() >= shared * blocks_->block_size();
    });
  }
  // After a preemption the cache may know more of it than the prompt.
  if (options_.prefix_cache && sequence->options().reads_prefix_cache &&
      (other == nullptr || !start.first)) {
    sequence->MatchPrefix(*blocks_);
    start.looked_up = true;
    start.found = sequence->num_computed();
  }
  if (other != nullptr && sequence->num_computed() < shared * blocks_->block_size()) {
    sequence->Free();
    sequence->ShareBlocks(*other, shared, *blocks_);
    start.looked_up = false;
    start.found = 0;
  }

  const bool has_slot = TakeSlot(sequence, plan);
  const auto wanted = [&] {
    return blocks_->BlocksFor(sequence->num_tokens()) -
           static_cast<int32_t>(sequence->block_table().size()) + num_growing_;
  };
  while (has_slot && wanted() > blocks_->num_available() && TakeFromPaused(nullptr, plan)) {
  }
  if (!has_slot || wanted() > blocks_->num_available()) {
    sequence->Free();
    return has_slot ? Start::kNoBlocks : Start::kNoSlot;
  }
  DDL_CHECK(sequence->ReserveBlocks(*blocks_), "the blocks were counted");
  EndToWait(sequence);
  const int32_t newly_found = sequence->Start(free_slots_.back());
  if (start.looked_up) start.newly_found = newly_found;
  free_slots_.pop_back();
  ++SideOf(*sequence).num_slots;
  if (group != nullptr) group->running.push_back(sequence);
  BeginToRun(sequence);
  plan->starts.push_back(start);
  return Start::kStarted;
}

// That one is there, not yet that it is the sequence's.
bool Scheduler::TakeSlot(Sequence* sequence, StepPlan* plan) {
  const Side& side = SideOf(*sequence);
  if (side.num_slots == options_.max_running_sequences) return TakeFromPaused(&side, plan);
  return !free_slots_.empty() || TakeFromPaused(nullptr, plan);
}

bool Scheduler::TakeFromPaused(const Side* side, StepPlan* plan) {
  const auto it = std::find_if(holding_.rbegin(), holding_.rend(), [&](const Sequence* paused) {
    return side == nullptr || &SideOf(*paused) == side;
  });
  if (it == holding_.rend()) return false;
  Sequence* const paused = *it;
  holding_.erase(std::next(it).base());
  Free(paused);
  paused->set_was_preempted(true);
  plan->preempted.push_back(paused);
  return true;
}

void Scheduler::BeginToWait(Sequence* sequence) {
  sequence->set_state(SequenceState::kWaiting);
  SideOf(*sequence).waiting.insert(sequence);
  if (sequence->was_preempted()) ++num_preempted_;
}

void Scheduler::EndToWait(Sequence* sequence) {
  DDL_CHECK(SideOf(*sequence).waiting.erase(sequence) == 1, "a sequence that was never added");
  if (sequence->was_preempted()) --num_preempted_;
}

void Scheduler::BeginToRun(Sequence* sequence) {
  sequence->set_state(SequenceState::kRunning);
  running_.insert(sequence);
  if (sequence->generates()) ++num_growing_;
}

void Scheduler::EndToRun(Sequence* sequence) {
  DDL_CHECK(running_.erase(sequence) == 1, "a sequence that does not run");
  if (sequence->generates()) --num_growing_;
}

void Scheduler::Free(Sequence* sequence) {
  free_slots_.push_back(sequence->slot());
  --SideOf(*sequence).num_slots;
  if (PromptGroup* const group = sequence->options().group) {
    std::erase(group->running, sequence);
  }
  sequence->Free();
}

}  // namespace ddl
