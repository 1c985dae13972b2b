#ifndef DDL_SERVER_ENGINE_REQUEST_H_
#define DDL_SERVER_ENGINE_REQUEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "model/sampler.h"
#include "model/token.h"

// What the service asks of the engine and what comes back: plain values, and the one interface
// through which results travel. No RPC types here.

namespace ddl {

enum class Priority { kHigh, kNormal, kLow };

struct StoppingParams {
  // Longest completion, tokens. At least 1. The context may end it sooner.
  int32_t max_tokens = 0;
  // End and stop tokens are not drawn, and stop strings not looked for, before this many.
  int32_t min_tokens = 0;
  std::vector<std::string> stop;  // none empty; only for models with a tokenizer
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;
};

struct GenerateParams {
  std::vector<TokenId> prompt;  // at least 1 token, at most context - 1
  SamplingParams sampling;      // the seed is already drawn
  StoppingParams stopping;
  int32_t logprobs = -1;  // as in SampleRequest
  bool skip_special_tokens = true;
};

enum class Pooling { kLastToken, kMean, kMax, kNone };

struct EmbedParams {
  std::vector<std::vector<TokenId>> inputs;  // each 1...context tokens
  Pooling pooling = Pooling::kLastToken;
  bool normalize = true;   // L2, after pooling and cutting
  int32_t dimensions = 0;  // keep the first k numbers of each vector; 0: all
};

struct Request {
  std::string id;
  Priority priority = Priority::kNormal;
  absl::Time deadline = absl::InfiniteFuture();
  // Longest wait before the first step that computes any of it; then the request ends with
  // RESOURCE_EXHAUSTED, QUEUE_TIMEOUT and RetryInfo. (DEADLINE_EXCEEDED would say that the
  // client's own deadline has passed.)
  absl::Duration queue_timeout = absl::InfiniteDuration();
  std::variant<GenerateParams, EmbedParams> params;
};

// Why a completion ended. An end token (kEos) or a stop token (kStop) that ends it is its last
// token, and is counted, but its text is not part of the text; so are the tokens of a stop
// string (kStop). When the last of max_tokens also fills the context, it is kLength.
enum class FinishReason { kStop, kEos, kLength, kContext };

// What one step added to a completion. Text is whole UTF-8 characters; concatenated over the
// deltas it is the whole completion. Tokens held back for a possible stop string come with the
// delta that settles it.
struct CompletionDelta {
  std::string text;
  std::vector<SampledToken> tokens;
};

struct CompletionEnd {
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

struct RequestTimings {
  absl::Duration queue;                // submitted -> first step that computes any of it
  absl::Duration prefill;              // -> first token, or last embedding
  absl::Duration decode;               // -> end
  absl::Duration time_to_first_token;  // submitted -> first token; zero without one
  int32_t preemptions = 0;
};

struct RequestUsage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;  // drawn; all of them delivered when the request ended OK
  int64_t cached_tokens = 0;
};

struct RequestEnd {
  // OK only when everything asked for was delivered before the deadline. Otherwise
  // DEADLINE_EXCEEDED, CANCELLED, RESOURCE_EXHAUSTED (QUEUE_TIMEOUT), INTERNAL (the step failed,
  // or the logits were not finite), UNAVAILABLE (the server stopped).
  absl::Status status;
  std::optional<CompletionEnd> completion;  // of a Generate that ended OK
  RequestUsage usage;
  RequestTimings timings;
};

// Where a request's results go. The engine calls it from the step thread, in the order below,
// never after OnEnd, and keeps it alive until then. Implementations must return at once: they
// take the value and leave, whatever the client's speed.
class RequestSink {
 public:
  virtual ~RequestSink() = default;

  virtual void OnDelta(CompletionDelta delta) = 0;
  virtual void OnEmbedding(InputEmbedding embedding) = 0;
  virtual void OnEnd(RequestEnd end) = 0;  // exactly once
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_REQUEST_H_
