#ifndef DDL_SERVER_ENGINE_IN_FLIGHT_STEP_H_
#define DDL_SERVER_ENGINE_IN_FLIGHT_STEP_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "model/model_runner.h"
#include "server/engine/active_request.h"
#include "server/engine/scheduler.h"
#include "server/engine/sequence.h"

namespace ddl {

// A step between the runner's Begin and its Finish: which chunk is whose, and what the runner still
// refers to.
struct InFlightStep {
  struct Chunk {
    ScheduledChunk scheduled;
    ActiveRequest* request = nullptr;
    RequestPart* part = nullptr;
    int32_t run = 0;  // of its sequence
    ComputedPositions computed;
  };
  std::vector<Chunk> chunks;
  int32_t decode_tokens = 0;
  int32_t prefill_tokens = 0;
  int32_t started_requests = 0;
  // Whether the next can be begun before this one is finished.
  bool may_be_followed = false;
  std::vector<size_t> gates_asked;    // chunks
  std::vector<int32_t> block_tables;  // the runner's chunks refer to it
  absl::Time begin;                   // of the turn
  absl::Duration scheduling;
  absl::Duration in_runner;
  // What has ended since and the step, or one before it, may still refer to.
  std::vector<std::unique_ptr<ActiveRequest>> ended_requests;
  std::vector<std::unique_ptr<Sequence>> ended_sequences;

  // For the chunks of `plan`, which Add then takes one by one.
  void Reserve(const StepPlan& plan);
  // Adds a chunk of a request's part. Returns it as the runner takes it.
  SequenceChunk Add(const ScheduledChunk& scheduled, ActiveRequest& request, RequestPart& part,
                    TokenId vocab_size);
  // The runner computes it: what the next step is scheduled from.
  void MarkBegun(Scheduler* scheduler);
  // Whether the next step may be begun before this one, of `runner_chunks`, is finished: what it
  // reads of this one may still be pending on the device, as long as nothing else depends on it, be
  // it how a token is sampled or what the host makes of this step.
  bool MayBeFollowed(absl::Span<const SequenceChunk> runner_chunks) const;
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_IN_FLIGHT_STEP_H_
