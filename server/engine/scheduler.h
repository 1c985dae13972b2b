#ifndef DDL_SERVER_ENGINE_SCHEDULER_H_
#define DDL_SERVER_ENGINE_SCHEDULER_H_

#include <cstdint>
#include <set>
#include <vector>

#include "server/engine/block_manager.h"
#include "server/engine/sequence.h"

namespace ddl {

struct SchedulerOptions {
  int32_t max_step_tokens = 512;  // at least max_running_sequences
  int32_t max_running_sequences = 64;
};

// The positions [start, end) of a sequence, to be computed in this step.
struct ScheduledChunk {
  Sequence* sequence = nullptr;
  int32_t start = 0;
  int32_t end = 0;

  friend bool operator==(const ScheduledChunk&, const ScheduledChunk&) = default;
};

struct StepPlan {
  std::vector<ScheduledChunk> chunks;  // decodes first; a sequence at most once
  int32_t decode_tokens = 0;
  int32_t prefill_tokens = 0;
  std::vector<Sequence*> preempted;  // lost slot and blocks in this step, and wait again
};

// Decides what the next step computes. Pure policy: no threads, no tensors, no clock.
//
// - Every running sequence that has drawn a token gets its one position. The rest of
//   max_step_tokens goes to prompts and embed inputs in chunks, in the order of SequenceRank.
// - A waiting sequence starts when nobody waits before it, a slot is free, and so are blocks for
//   all the tokens it has and one more for every running sequence that still grows. Nobody
//   overtakes, so nobody starves within a priority.
// - When a running sequence grows and no block is free, the last running sequence by rank is
//   preempted: it keeps its tokens and is computed again when it starts again. The first by rank
//   is never preempted for another, so there is always progress.
//
// The caller marks what was computed and appends what was drawn before it asks again.
class Scheduler {
 public:
  // `blocks` must outlive the scheduler.
  Scheduler(const SchedulerOptions& options, BlockManager* blocks);

  // Lets a sequence wait. It must fit into the cache on its own, to its longest, and stay alive
  // until it is removed.
  void Add(Sequence* sequence);
  // Takes a sequence out, wherever it is; its slot and blocks are free at once.
  void Remove(Sequence* sequence);

  // Empty only when no sequence is there.
  StepPlan Schedule();

  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }

 private:
  struct ByRank {
    bool operator()(const Sequence* a, const Sequence* b) const { return a->rank() < b->rank(); }
  };

  void ReserveForDecodes(StepPlan* plan);
  bool TryStart(Sequence* sequence);
  void Release(Sequence* sequence);

  const SchedulerOptions options_;
  BlockManager* const blocks_;
  std::vector<int32_t> free_slots_;
  std::set<Sequence*, ByRank> waiting_;
  std::set<Sequence*, ByRank> running_;
  int32_t num_growing_ = 0;  // running sequences that generate
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_SCHEDULER_H_
