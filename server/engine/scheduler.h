#ifndef DDL_SERVER_ENGINE_SCHEDULER_H_
#define DDL_SERVER_ENGINE_SCHEDULER_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "server/engine/block_manager.h"
#include "server/engine/sequence.h"

namespace ddl {

// Slots for `max_running_sequences` of each kind, completions and inputs, to run: a few more than
// that in all, so that neither kind can take every slot.
inline int32_t SlotsFor(int32_t max_running_sequences) {
  return max_running_sequences + std::max(1, max_running_sequences / 8);
}

struct SchedulerOptions {
  int32_t max_step_tokens = 512;          // at least max_running_sequences
  int32_t max_running_sequences = 64;     // that generate, and as many that do not
  bool prefix_cache = false;              // keep what is computed, and look there
  std::optional<int32_t> num_slots = {};  // at least 1; none: SlotsFor(max_running_sequences)
};

// The positions [start, end) of a sequence, to be computed in this step.
struct ScheduledChunk {
  Sequence* sequence = nullptr;
  int32_t start = 0;
  int32_t end = 0;

  friend bool operator==(const ScheduledChunk&, const ScheduledChunk&) = default;
};

// A sequence that begins to run in this step, perhaps once more.
struct SequenceStart {
  Sequence* sequence = nullptr;
  bool first = false;       // not after a preemption
  bool looked_up = false;   // in the prefix cache
  int32_t found = 0;        // positions found there
  int32_t newly_found = 0;  // of them, those of the prompt that it never had before
};

struct StepPlan {
  std::vector<ScheduledChunk> chunks;  // decodes first; a sequence at most once
  int32_t decode_tokens = 0;
  int32_t prefill_tokens = 0;
  std::vector<SequenceStart> starts;
  std::vector<Sequence*> preempted;  // lost slot and blocks in this step
};

// Decides what the next step computes. Pure policy: no threads, no tensors, no clock; what the
// caller has measured comes in as numbers.
//
// - Every running sequence that has a sampled token gets its one position. The rest of the step
//   goes to prompts and inputs in chunks. There are two sides, completions and inputs; who has
//   been served less goes first, and within a side the order is that of SequenceRank.
// - A waiting sequence starts when nobody of its side waits before it, a slot is free, and so are
//   blocks for all the tokens it has and one more for every running sequence that still grows.
//   While one whose turn it is waits for blocks, its side starts nobody, and the other side only
//   when none of its own runs: nobody is overtaken for ever, and neither side stands still.
// - A completion whose prompt another completion is computing waits for it, without being in
//   anyone's way, and then shares the prompt's full blocks.
// - When a running sequence grows and no block is available, what paused sequences hold is taken
//   first; then the last running sequence by rank is preempted: it keeps its tokens and is
//   computed again when it starts again. The first by rank is never preempted for another, so
//   there is always progress.
//
// The caller says what is being computed (MarkBegun), and appends what is being sampled, before it
// asks again. Steps are computed in the order of the plans: what a plan gives to somebody is not
// touched before the plans of those who had it have been computed, even if they are in flight.
class Scheduler {
 public:
  // `blocks` must outlive the scheduler.
  Scheduler(const SchedulerOptions& options, BlockManager* blocks);

  // Lets a sequence wait. It must fit into the cache on its own, to its longest, and stay alive
  // until it is removed.
  void Add(Sequence* sequence);
  // Takes a sequence out, wherever it is; its slot and blocks are free at once. Nothing happens
  // when it was never added.
  void Remove(Sequence* sequence);

  // A paused sequence is not computed. It keeps its slot and blocks until somebody needs them.
  void Pause(Sequence* sequence);  // that waits or runs
  void Resume(Sequence* sequence);
  // A waiting sequence rises one class, if there is one above. It keeps it when it runs.
  void Promote(Sequence* sequence);

  // Empty only when every sequence is paused, or all that run are at their end and the others wait
  // for what they hold. `prefill_budget`: positions of prompts and inputs
  // that may be computed beside decodes, at least one block's worth in any case; without decodes
  // they get the whole step.
  StepPlan Schedule(int32_t prefill_budget);
  // What Schedule has planned is being computed.
  ComputedPositions MarkBegun(const ScheduledChunk& chunk) {
    return chunk.sequence->MarkBegun(chunk.end);
  }
  // It has been, by a sequence that has not lost it since: others may find it.
  void MarkComputed(const ScheduledChunk& chunk);

  int32_t num_waiting() const {
    return static_cast<int32_t>(sides_[0].waiting.size() + sides_[1].waiting.size());
  }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_decodes() const;  // of the next step, if blocks suffice
  int32_t num_paused() const { return num_paused_; }
  int32_t num_preempted() const { return num_preempted_; }  // waiting since a preemption

 private:
  struct ByRank {
    bool operator()(const Sequence* a, const Sequence* b) const { return a->rank() < b->rank(); }
  };
  using RankedSequences = std::set<Sequence*, ByRank>;
  // Sequences that generate, or those that do not.
  struct Side {
    RankedSequences waiting;
    int32_t num_slots = 0;  // held by them
    int64_t served = 0;     // positions of prompts or inputs, kept comparable to the other side's
  };
  class PrefillQueue;
  enum class Start { kStarted, kNoSlot, kNoBlocks };

  Side& SideOf(const Sequence& sequence) { return sides_[sequence.generates() ? 0 : 1]; }
  void ReserveForDecodes(StepPlan* plan);
  void FillWithPrefills(int32_t budget, StepPlan* plan);
  int32_t NumRunning(const Side& side) const;
  void BalanceSides(bool first_wants, bool second_wants);
  bool WaitsForItsGroup(const Sequence& sequence) const;
  Start TryStart(Sequence* sequence, StepPlan* plan);
  bool TakeSlot(Sequence* sequence, StepPlan* plan);
  // Takes slot and blocks of the last paused sequence by rank that holds any; with `side`, of it.
  bool TakeFromPaused(const Side* side, StepPlan* plan);

  void BeginToWait(Sequence* sequence);
  void EndToWait(Sequence* sequence);
  void BeginToRun(Sequence* sequence);
  void EndToRun(Sequence* sequence);
  void Free(Sequence* sequence);

  const SchedulerOptions options_;
  BlockManager* const blocks_;
  std::vector<int32_t> free_slots_;
  std::array<Side, 2> sides_;
  RankedSequences running_;
  RankedSequences holding_;  // paused, with slot and blocks
  int32_t num_paused_ = 0;
  int32_t num_preempted_ = 0;
  int32_t num_growing_ = 0;  // running sequences that generate
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_SCHEDULER_H_
