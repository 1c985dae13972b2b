#ifndef DDL_SERVER_ENGINE_ACTIVE_REQUEST_H_
#define DDL_SERVER_ENGINE_ACTIVE_REQUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "server/engine/completion.h"
#include "server/engine/observer.h"
#include "server/engine/pooling.h"
#include "server/engine/request.h"
#include "server/engine/sequence.h"

namespace ddl {

// A request between Submit and OnEnd: its sequences, where their output goes, and what happened
// when. Made by the submitting thread, then touched by the step thread alone.
struct ActiveRequest {
  // Constant after Submit.
  uint64_t id = 0;
  Task task = Task::kGenerate;
  int64_t prompt_tokens = 0;  // of all inputs
  absl::Time submitted;
  absl::Time start_by;  // submitted + queue_timeout
  absl::Time deadline;
  std::shared_ptr<RequestSink> sink;

  // One, or one per input of an Embed; null once its output is delivered.
  std::vector<std::unique_ptr<Sequence>> sequences;
  int32_t sequences_left = 0;
  std::optional<Completion> completion;  // of a Generate
  std::vector<Pooler> poolers;           // of an Embed: one per input

  int32_t preemptions = 0;
  std::optional<absl::Time> started;      // the first step that computes any of it
  std::optional<absl::Time> first_token;  // drawn
  absl::Time last_token;

  // Set when it has ended: everything it held is free, and OnEnd is due.
  std::optional<RequestEnd> end;
  FinishedRequest finished;

  bool has_ended() const { return end.has_value(); }
  int32_t num_generated() const { return completion.has_value() ? completion->num_tokens() : 0; }
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_ACTIVE_REQUEST_H_
