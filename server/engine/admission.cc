#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_details.h"
#include "server/engine/engine.h"

// What Engine does on the thread that submits: makes a request of what the service asks for, or
// refuses it.

namespace ddl {
namespace {

// What a refused client is told to wait: the measured delay of the queue, within these bounds.
constexpr absl::Duration kShortestRetry = absl::Milliseconds(50);
constexpr absl::Duration kLongestRetry = absl::Minutes(1);
constexpr absl::Duration kUnmeasuredDelay = absl::Seconds(1);
constexpr absl::Duration kRetryWhenDraining = absl::Seconds(1);

}  // namespace

absl::StatusOr<RequestHandle> Engine::Submit(Request request, std::shared_ptr<RequestSink> sink) {
  const absl::Status size = CheckSize(request);
  std::unique_ptr<ActiveRequest> active = Activate(std::move(request), std::move(sink));
  const RequestHandle handle = {.id = active->id};

  MutexLock lock(mu_);
  if (absl::Status status = CheckAdmission(*active, size); !status.ok()) return status;
  ++num_requests_;
  CountWaiting(*active, 1);
  submitted_.push_back(std::move(active));
  PublishLoad();
  work_.NotifyOne();
  return handle;
}

std::unique_ptr<ActiveRequest> Engine::Activate(Request request,
                                                std::shared_ptr<RequestSink> sink) {
  auto active = std::make_unique<ActiveRequest>();
  active->id = next_id_.fetch_add(1, std::memory_order_relaxed);
  active->priority = request.priority;
  active->submitted = now_();
  active->start_by = active->submitted + request.queue_timeout;
  active->deadline = request.deadline;
  active->ages_at = active->submitted + options_.priority_aging;
  active->sink = std::move(sink);

  const auto add_part = [&](std::vector<TokenId> tokens,
                            const SequenceOptions& options) -> RequestPart& {
    DDL_CHECK(static_cast<int64_t>(tokens.size()) + (options.generates ? 1 : 0) <=
                  options_.max_context_length,
              "the service checks the length of every input");
    const SequenceRank rank = {
        .priority = request.priority, .request_id = active->id, .index = active->parts_left++};
    RequestPart& part = active->parts.emplace_back();
    part.sequence = std::make_unique<Sequence>(rank, std::move(tokens), options);
    return part;
  };
  const auto count = [&active](const std::vector<TokenId>& tokens) {
    active->prompt_tokens += static_cast<int64_t>(tokens.size());
  };
  if (auto* generate = std::get_if<GenerateParams>(&request.params)) {
    active->task = Task::kGenerate;
    active->ddl_stats = generate->ddl_stats;
    active->wants_prompt_scores = generate->prompt_logprobs >= 0;
    count(generate->prompt);
    const auto max_tokens = static_cast<int32_t>(std::min<int64_t>(
        static_cast<int64_t>(generate->prompt.size()) + generate->stopping.max_tokens,
        options_.max_context_length));
    const bool shares = generate->n > 1 && !generate->ddl_stats;
    for (int32_t i = 0; i < generate->n; ++i) {
      // Something is wanted of every position of the first one's prompt.
      const bool whole = generate->ddl_stats || (i == 0 && active->wants_prompt_scores);
      RequestPart& part =
          add_part(generate->prompt, {.generates = true,
                                      .max_tokens = max_tokens,
                                      .reads_prefix_cache = generate->use_prefix_cache && !whole,
                                      .group = shares ? &active->group : nullptr,
                                      .shares_prompt = shares && !whole});
      part.completion.emplace(*generate, i,
                              Completion::Limits{.max_context_length = options_.max_context_length,
                                                 .vocab_size = VocabSize()},
                              tokenizer_.get());
      if (i == 0) part.score_logprobs = generate->prompt_logprobs;
    }
  } else if (auto* embed = std::get_if<EmbedParams>(&request.params)) {
    active->task = Task::kEmbed;
    active->ddl_stats = embed->ddl_stats;
    active->readout = embed->readout;
    const int64_t width = embed->readout.kind == HiddenReadout::Kind::kStateFlat
                              ? model().hidden_size * model().value_channels
                              : model().hidden_size;
    const Pooler pooler(
        {.pooling = embed->pooling, .normalize = embed->normalize, .dimensions = embed->dimensions},
        width);
    // Reading another vector than the LM head's may itself need the states of earlier positions
    // (TC compresses over tokens), which no block keeps.
    const bool any_position_alone =
        embed->readout.kind == HiddenReadout::Kind::kFinalNorm && !embed->readout.layer.has_value();
    for (std::vector<TokenId>& input : embed->inputs) {
      count(input);
      add_part(std::move(input), {.reads_prefix_cache = embed->pooling == Pooling::kLastToken &&
                                                        any_position_alone && !embed->ddl_stats})
          .pooler = pooler;
    }
  } else {
    active->task = Task::kScore;
    for (std::vector<TokenId>& input : std::get<ScoreParams>(request.params).inputs) {
      count(input);
      add_part(std::move(input), {}).score_logprobs = 0;
    }
  }
  DDL_CHECK(active->parts_left > 0, "the service refuses a request for nothing");
  return active;
}

TokenId Engine::VocabSize() const {
  const auto rows = static_cast<TokenId>(model().vocab_size);
  return tokenizer_ != nullptr ? std::min(rows, tokenizer_->vocab_size()) : rows;
}

absl::Status Engine::CheckSize(const Request& request) const {
  // Positions of the longest sequence. Several completions share their prompt's blocks when they
  // run together, but need not: each must fit on its own.
  int64_t needed = 0;
  if (const auto* generate = std::get_if<GenerateParams>(&request.params)) {
    // The last token is drawn, but never computed.
    needed = std::min<int64_t>(
                 static_cast<int64_t>(generate->prompt.size()) + generate->stopping.max_tokens,
                 options_.max_context_length) -
             1;
  } else {
    const auto* embed = std::get_if<EmbedParams>(&request.params);
    for (const auto& input :
         embed != nullptr ? embed->inputs : std::get<ScoreParams>(request.params).inputs) {
      needed = std::max(needed, static_cast<int64_t>(input.size()));
    }
  }
  const int64_t available = static_cast<int64_t>(model().kv_num_blocks) * model().kv_block_size;
  if (needed <= available) return absl::OkStatus();
  return WithDetails(absl::FailedPreconditionError(
                         absl::StrCat("the request can never fit in the KV cache: it needs ",
                                      needed, " tokens, the cache has ", available)),
                     {.reason = "TOO_LARGE",
                      .metadata = {{"needed_tokens", std::to_string(needed)},
                                   {"available_tokens", std::to_string(available)}}});
}

absl::Status Engine::CheckAdmission(const ActiveRequest& request, absl::Status size) {
  if (!admitting_) {
    observer_->OnRejected("draining");
    return WithDetails(absl::UnavailableError("the server is draining"),
                       {.reason = "DRAINING", .retry_after = kRetryWhenDraining});
  }
  if (request.submitted >= request.deadline) {
    observer_->OnRejected("deadline_infeasible");
    return absl::DeadlineExceededError("the deadline had passed when the request came");
  }
  if (!size.ok()) {
    observer_->OnRejected("too_large");
    return size;
  }
  const int32_t running = load_.running();
  const int32_t waiting = load_.waiting();
  if (running + waiting >= options_.max_running_sequences + options_.max_waiting_requests) {
    observer_->OnRejected("queue_full");
    return WithDetails(
        absl::ResourceExhaustedError(absl::StrCat("too many requests: ", running,
                                                  " are running and ", waiting, " are waiting")),
        {.reason = "QUEUE_FULL", .retry_after = RetryAfter()});
  }
  if (load_.waiting_tokens > 0 &&
      load_.waiting_tokens + request.prompt_tokens > options_.max_waiting_tokens) {
    observer_->OnRejected("tokens_full");
    return WithDetails(absl::ResourceExhaustedError(
                           absl::StrCat("too many waiting prompt tokens: ", load_.waiting_tokens,
                                        " are waiting, this request has ", request.prompt_tokens,
                                        ", the limit is ", options_.max_waiting_tokens)),
                       {.reason = "TOKENS_FULL", .retry_after = RetryAfter()});
  }
  // An engine that is not full, or has measured nothing, tries.
  const int32_t ahead = NumAhead(request.priority);
  const std::optional<double> per_second = starts_.per_second();
  if (running + waiting >= options_.max_running_sequences && ahead > 0 && per_second.has_value() &&
      request.submitted + absl::Seconds((ahead + 1) / *per_second) >= request.deadline) {
    observer_->OnRejected("deadline_infeasible");
    return WithDetails(
        absl::ResourceExhaustedError(absl::StrCat(
            "the deadline cannot be met: ", ahead, " requests are waiting to start before it, at ",
            *per_second, " per second, and it is in ",
            absl::FormatDuration(request.deadline - request.submitted))),
        {.reason = "DEADLINE_INFEASIBLE", .retry_after = RetryAfter()});
  }
  return absl::OkStatus();
}

int32_t Engine::NumAhead(Priority priority) const {
  int32_t ahead = 0;
  for (int32_t i = 0; i <= static_cast<int32_t>(priority); ++i) ahead += waiting_by_priority_[i];
  return ahead;
}

void Engine::CountWaiting(const ActiveRequest& request, int32_t change) {
  load_.of(request.task).waiting += change;
  load_.waiting_tokens += change * request.prompt_tokens;
  waiting_by_priority_[static_cast<size_t>(request.priority)] += change;
}

absl::Duration Engine::RetryAfter() const {
  return std::clamp(load_.queue_delay, kShortestRetry, kLongestRetry);
}

void Engine::PublishLoad() {
  const int32_t waiting = load_.waiting();
  load_.queue_delay = absl::ZeroDuration();
  if (waiting > 0) {
    const std::optional<double> per_second = starts_.per_second();
    load_.queue_delay =
        per_second.has_value() ? absl::Seconds(waiting / *per_second) : kUnmeasuredDelay;
  }
  observer_->OnLoad(load_);
}

}  // namespace ddl
