#ifndef DDL_SERVER_ENGINE_REQUEST_H_
#define DDL_SERVER_ENGINE_REQUEST_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "model/hidden_readout.h"
#include "model/sampler.h"
#include "model/token.h"

// What the service asks of the engine and what comes back: plain values, and the one interface
// through which results travel. No RPC types here.

namespace ddl {

enum class Priority { kHigh, kNormal, kLow };

struct StoppingParams {
  // Longest completion, tokens. At least 1. The context may end it sooner.
  int32_t max_tokens = 0;
  // End and stop tokens are not sampled, and stop strings not looked for, before this many.
  int32_t min_tokens = 0;
  std::vector<std::string> stop;  // none empty; only for models with a tokenizer
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;
};

struct GenerateParams {
  std::vector<TokenId> prompt;  // at least 1 token, at most context - 1
  int32_t n = 1;                // completions of the prompt, which is computed once
  // The seed is already chosen. Completion i samples with seed + i, so that it can be had alone.
  SamplingParams sampling;
  StoppingParams stopping;
  int32_t logprobs = -1;         // as in SampleRequest
  int32_t prompt_logprobs = -1;  // likewise, of the prompt's tokens: RequestStart brings them
  bool skip_special_tokens = true;
  bool use_prefix_cache = true;  // look blocks up there; what is computed goes in either way
  bool ddl_stats = false;        // of every position: never reads the prefix cache

  // The most tokens that a completion comes to in a context of so many.
  int32_t MaxNewTokens(int32_t max_context_length) const {
    return std::min(stopping.max_tokens, max_context_length - static_cast<int32_t>(prompt.size()));
  }
};

// kWeightedMean: position i of n weighs i + 1.
enum class Pooling { kLastToken, kMean, kMax, kWeightedMean, kNone };

struct EmbedParams {
  std::vector<std::vector<TokenId>> inputs;  // each 1...context tokens
  HiddenReadout readout;                     // which vector of each position
  Pooling pooling = Pooling::kLastToken;
  bool normalize = true;   // L2, after pooling and cutting
  int32_t dimensions = 0;  // keep the first k numbers of each vector; 0: all
  bool ddl_stats = false;
};

struct ScoreParams {
  std::vector<std::vector<TokenId>> inputs;  // each 1...context tokens
};

struct Request {
  std::string id;
  Priority priority = Priority::kNormal;
  absl::Time deadline = absl::InfiniteFuture();
  // Longest wait before the first step that computes any of it; then the request ends with
  // RESOURCE_EXHAUSTED, QUEUE_TIMEOUT and RetryInfo. (DEADLINE_EXCEEDED would say that the
  // client's own deadline has passed.)
  absl::Duration queue_timeout = absl::InfiniteDuration();
  std::variant<GenerateParams, EmbedParams, ScoreParams> params;

  // The prompt, or what is to be embedded or scored.
  absl::Span<const std::vector<TokenId>> inputs() const;
  int64_t NumInputTokens() const;
  // The most tokens that it comes to in a context of so many: its inputs and longest completions.
  int64_t MaxTokens(int32_t max_context_length) const;
};

// Why a completion ended. An end token (kEos) or a stop token (kStop) that ends it is its last
// token, and is counted, but its text is not part of the text; so are the tokens of a stop
// string (kStop). When the last of max_tokens also fills the context, it is kLength.
enum class FinishReason { kStop, kEos, kLength, kContext };

// That a request has begun to be computed; with prompt_logprobs, that its prompt has been.
struct RequestStart {
  int64_t cached_tokens = 0;  // prompt tokens that the prefix cache had
  // With prompt_logprobs: the prompt's tokens but the first, which nothing predicts.
  std::vector<SampledToken> prompt;
};

// What one step added to a completion. Text is whole UTF-8 characters; concatenated over the
// deltas it is the whole completion. Tokens held back for a possible stop string come with the
// delta that settles it.
struct CompletionDelta {
  int32_t index = 0;  // of the completion, in [0, n)
  std::string text;
  std::vector<SampledToken> tokens;
};

struct CompletionEnd {
  int32_t index = 0;
  FinishReason finish_reason = FinishReason::kLength;
  std::optional<std::string> matched_stop_str;
  std::optional<TokenId> matched_token_id;
  double cumulative_logprob = 0.0;  // of all its tokens
};

// One input's vectors: 1, or one per token with Pooling::kNone. Each `dimensions` long.
struct InputEmbedding {
  int32_t index = 0;  // of the input in its request
  std::vector<std::vector<float>> vectors;
};

// The tokens of one input of a Score but the first, each with the probability that the model
// gives it after those before. Equals, to the bit, what decoding the same tokens reports.
struct InputScore {
  int32_t index = 0;
  std::vector<SampledToken> tokens;
};

// What the gates of one sublayer did over the positions of one sequence (a completion with its
// prompt, or an Embed's input): for every position, in order.
struct SublayerStats {
  std::vector<float> beta;          // [positions] in [0, 2]
  std::vector<float> update_ratio;  // [positions] |beta k (v^T - k^T X)| / |X|, Frobenius
};

struct RequestTimings {
  absl::Duration queue;                // submitted -> first step that computes any of it
  absl::Duration prefill;              // -> first token, or last embedding
  absl::Duration decode;               // -> end
  absl::Duration time_to_first_token;  // submitted -> first token; zero without one
  int32_t preemptions = 0;
};

struct RequestUsage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;  // sampled; all of them delivered when the request ended OK
  int64_t cached_tokens = 0;
};

struct RequestEnd {
  // OK only when everything asked for was delivered before the deadline. Otherwise
  // DEADLINE_EXCEEDED, CANCELLED, RESOURCE_EXHAUSTED (QUEUE_TIMEOUT, SLOW_READER), INTERNAL (the
  // step failed, or the logits were not finite), UNAVAILABLE (the server stopped).
  absl::Status status;
  std::vector<CompletionEnd> completions;  // of a Generate that ended OK: n, by index
  // With ddl_stats: by completion or input, then by sublayer (attention and MLP of layer 0, of
  // layer 1 ...), 2 * num_layers of them. Empty for a model without the delta rule.
  std::vector<std::vector<SublayerStats>> ddl_stats;
  RequestUsage usage;
  RequestTimings timings;
};

// Whether a sink takes more at the moment. A full one has its request paused: its sequences leave
// the batch, and what they hold may be taken for others. Steps in flight by then still
// bring what they bring: a delta each for every completion, which the full sink is to take.
// Engine::Resume lets the request go on; one paused for longer than slow_reader_timeout ends with
// RESOURCE_EXHAUSTED, SLOW_READER.
enum class SinkState { kReady, kFull };

// Where a request's results go. The engine calls it from the step thread, in the order below,
// never after OnEnd, and keeps it alive until then. Implementations must return at once: they
// take the value and leave, whatever the client's speed.
class RequestSink {
 public:
  virtual ~RequestSink() = default;

  virtual void OnStart(RequestStart start) = 0;  // once, unless it ends before
  // Deltas that follow kFull, of steps begun before, are still to be taken.
  virtual SinkState OnDelta(CompletionDelta delta) = 0;
  virtual void OnEmbedding(InputEmbedding embedding) = 0;
  virtual void OnScore(InputScore score) = 0;
  virtual void OnEnd(RequestEnd end) = 0;  // exactly once
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_REQUEST_H_
