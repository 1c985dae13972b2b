#ifndef DDL_SERVER_ENGINE_ACTIVE_REQUEST_H_
#define DDL_SERVER_ENGINE_ACTIVE_REQUEST_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "model/model_runner.h"
#include "model/tokenizer/tokenizer.h"
#include "server/engine/completion.h"
#include "server/engine/engine_options.h"
#include "server/engine/observer.h"
#include "server/engine/pooling.h"
#include "server/engine/request.h"
#include "server/engine/sequence.h"

namespace ddl {

// One completion, or one input, of a request: its sequence and what is gathered of its outputs.
struct RequestPart {
  std::unique_ptr<Sequence> sequence;    // null once all of its output is there
  int32_t chunk = -1;                    // its place in the step that was last begun with it
  std::optional<Completion> completion;  // of a Generate
  std::optional<Pooler> pooler;          // of an Embed
  // Of a Score's input, or of the prompt with prompt_logprobs: the tokens but the first. -1: not
  // wanted.
  int32_t score_logprobs = -1;
  std::vector<SampledToken> scored;
  std::vector<SublayerStats> ddl_stats;  // [2 * num_layers] when asked for

  std::optional<absl::Time> last_token;  // sampled
  std::optional<CompletionEnd> end;

  // Forgets what a sequence that is computed again, from its beginning, brings again.
  void Restart();
  // The gates of one chunk's positions.
  void AppendStats(const ChunkOutput& output, int64_t num_sublayers);
};

// A request between Submit and OnEnd: its sequences, where their output goes, and what happened
// when. Made by the submitting thread, then touched by the step thread alone.
struct ActiveRequest {
  // Constant after Submit.
  uint64_t id = 0;
  Task task = Task::kGenerate;
  Priority priority = Priority::kNormal;
  int64_t prompt_tokens = 0;         // of all inputs; a prompt counts once, whatever n is
  int64_t longest_sequence = 0;      // positions that its longest sequence may come to
  bool wants_prompt_scores = false;  // with OnStart
  HiddenReadout readout;             // of an Embed
  bool ddl_stats = false;
  absl::Time submitted;
  absl::Time start_by;  // submitted + queue_timeout
  absl::Time deadline;
  std::shared_ptr<RequestSink> sink;

  PromptGroup group;  // outlives the sequences
  std::vector<RequestPart> parts;
  int32_t parts_left = 0;

  int64_t cached_tokens = 0;  // that its first sequence found in the prefix cache
  int32_t preemptions = 0;
  absl::Time ages_at;                     // when what still waits rises one class
  std::optional<absl::Time> started;      // the first step that computes any of it
  std::optional<absl::Time> first_token;  // sampled
  std::optional<absl::Time> paused;       // since its sink was full

  // Set when it has ended: everything it held is free, and OnEnd is due.
  std::optional<RequestEnd> end;
  FinishedRequest finished;

  bool has_ended() const { return end.has_value(); }
  int64_t num_generated() const;

  // What ends it by the clock, unless something else does: when, or never.
  struct Timeouts {
    absl::Time deadline = absl::InfiniteFuture();
    absl::Time queue = absl::InfiniteFuture();        // while it has not started
    absl::Time slow_reader = absl::InfiniteFuture();  // while it is paused

    absl::Time first() const { return std::min({deadline, queue, slow_reader}); }
  };
  Timeouts timeouts(absl::Duration slow_reader_timeout) const;

  // Sets `end` and `finished`. `noticed`: when the cancel or the deadline came.
  void Finish(absl::Status status, EndReason reason, absl::Time now, absl::Time noticed);
};

// A request as the engine works on it. It has been checked: at least one input, each within the
// context. `tokenizer` may be null, and outlives it.
std::unique_ptr<ActiveRequest> MakeActiveRequest(Request request, uint64_t id,
                                                 std::shared_ptr<RequestSink> sink,
                                                 const EngineOptions& options,
                                                 const ModelDescription& model,
                                                 const Tokenizer* tokenizer, absl::Time now);

// Token ids that may be sampled: the tokenizer's, where the embedding has rows beyond them.
TokenId VocabSize(const ModelDescription& model, const Tokenizer* tokenizer);

EndReason ToEndReason(FinishReason reason);
// Of a request that did not end OK.
WasteReason ToWasteReason(EndReason reason);

// Of several completions the first counts the prompt, as usage does.
inline bool CountsPrompt(const ActiveRequest& request, const Sequence& sequence) {
  return request.task != Task::kGenerate || sequence.rank().index == 0;
}

// The clock may have been set back between two times.
inline absl::Duration NotNegative(absl::Duration duration) {
  return std::max(duration, absl::ZeroDuration());
}

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_ACTIVE_REQUEST_H_
