#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/engine/engine.h"
#include "server/engine/status_details.h"

// What Engine does with one request on the step thread: takes what a chunk brought, pauses it,
// lets it rise, ends it.

namespace ddl {
namespace {

std::string_view NameOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kContext:
      return "context";
  }
  return "";
}

void AppendStats(const ChunkOutput& output, int64_t num_sublayers,
                 std::vector<SublayerStats>* stats) {
  if (output.beta.empty()) return;  // a model without the delta rule
  stats->resize(num_sublayers);
  const auto positions = static_cast<int64_t>(output.beta.size()) / num_sublayers;
  for (int64_t i = 0; i < num_sublayers; ++i) {
    const auto append = [&](const std::vector<float>& from, std::vector<float>* to) {
      to->insert(to->end(), from.begin() + i * positions, from.begin() + (i + 1) * positions);
    };
    append(output.beta, &(*stats)[i].beta);
    append(output.update_ratio, &(*stats)[i].update_ratio);
  }
}

}  // namespace

// --- What a chunk brought ------------------------------------------------------------------

void Engine::CountComputed(const ActiveRequest& request, const Sequence& sequence,
                           const ComputedPositions& computed) {
  if (computed.prompt > 0 && CountsPrompt(request, sequence)) {
    observer_->OnPromptTokens(request.task, PromptSource::kComputed, computed.prompt);
  }
  if (computed.again > 0) observer_->OnWastedTokens("preempt_recompute", computed.again);
}

void Engine::AcceptOutput(ActiveRequest& request, const ScheduledChunk& chunk, ChunkOutput output,
                          absl::Time now) {
  Sequence& sequence = *chunk.sequence;
  RequestPart& part = PartOf(sequence);
  if (chunk.start == 0) {  // perhaps computed again
    part.scored.clear();
    part.ddl_stats.clear();
    if (part.pooler.has_value()) part.pooler->Reset();
  }
  std::ranges::move(output.scored, std::back_inserter(part.scored));
  if (request.ddl_stats) AppendStats(output, 2 * model().num_layers, &part.ddl_stats);

  if (part.completion.has_value()) {
    if (request.wants_prompt_scores && part.score_logprobs >= 0 &&
        sequence.num_computed() >= sequence.num_prompt_tokens()) {
      part.score_logprobs = -1;
      request.sink->OnStart(
          {.cached_tokens = request.cached_tokens, .prompt = std::move(part.scored)});
      part.scored.clear();
      for (RequestPart& other : request.parts) {
        if (&other != &part) scheduler_.Add(other.sequence.get());
      }
    }
    if (output.sampled.has_value()) AcceptToken(request, part, *std::move(output.sampled), now);
    return;
  }
  if (part.pooler.has_value()) part.pooler->Add(output.hidden);
  if (sequence.num_remaining() > 0) return;
  const int32_t index = sequence.rank().index;
  if (part.pooler.has_value()) {
    request.sink->OnEmbedding({.index = index, .vectors = part.pooler->Take()});
  } else {
    request.sink->OnScore({.index = index, .tokens = std::move(part.scored)});
  }
  FinishPart(request, part, now);
}

void Engine::AcceptToken(ActiveRequest& request, RequestPart& part, SampledToken token,
                         absl::Time now) {
  observer_->OnGeneratedTokens(1);
  if (!request.first_token.has_value()) request.first_token = now;
  if (!part.last_token.has_value()) {
    observer_->OnTimeToFirstToken(NotNegative(now - request.submitted));
  } else {
    observer_->OnInterTokenLatency(NotNegative(now - *part.last_token));
  }
  part.last_token = now;

  part.sequence->Append(token.id);
  Completion::Progress progress = part.completion->Accept(std::move(token));
  SinkState sink = SinkState::kReady;
  if (!progress.delta.text.empty() || !progress.delta.tokens.empty()) {
    sink = request.sink->OnDelta(std::move(progress.delta));
  }
  if (progress.end.has_value()) {
    part.end = std::move(progress.end);
    FinishPart(request, part, now);
  }
  if (sink == SinkState::kFull && !request.has_ended()) Pause(request, now);
}

void Engine::FinishPart(ActiveRequest& request, RequestPart& part, absl::Time now) {
  scheduler_.Remove(part.sequence.get());
  part.sequence.reset();
  if (--request.parts_left > 0) return;
  const std::optional<CompletionEnd>& first = request.parts.front().end;
  End(request, absl::OkStatus(), first.has_value() ? NameOf(first->finish_reason) : "stop", now);
}

// --- Pauses, waiting and ends --------------------------------------------------------------

void Engine::Pause(ActiveRequest& request, absl::Time now) {
  if (request.paused.has_value()) return;  // by another of its parts, in this step
  request.paused = now;
  observer_->OnStreamStall();
  for (const RequestPart& part : request.parts) {
    if (part.sequence != nullptr) scheduler_.Pause(part.sequence.get());
  }
}

void Engine::ResumePaused(ActiveRequest& request) {
  if (!request.paused.has_value() || request.has_ended()) return;
  request.paused.reset();
  for (const RequestPart& part : request.parts) {
    if (part.sequence != nullptr) scheduler_.Resume(part.sequence.get());
  }
}

void Engine::Age(ActiveRequest& request, absl::Time now) {
  request.ages_at = now + options_.priority_aging;
  for (const RequestPart& part : request.parts) {
    if (part.sequence != nullptr && part.sequence->state() == SequenceState::kWaiting) {
      scheduler_.Raise(part.sequence.get());
    }
  }
}

void Engine::EndExpired(ActiveRequest& request) {
  End(request,
      absl::DeadlineExceededError(request.started.has_value()
                                      ? "the deadline passed while the request was running"
                                      : "the deadline passed while the request was queued"),
      "deadline", request.deadline);
}

void Engine::EndQueueTimeout(ActiveRequest& request) {
  absl::Duration retry_after;
  {
    MutexLock lock(mu_);
    retry_after = RetryAfter();
  }
  End(request,
      WithDetails(absl::ResourceExhaustedError(
                      absl::StrCat("the request was still queued after its queue_timeout of ",
                                   absl::FormatDuration(request.start_by - request.submitted))),
                  {.reason = "QUEUE_TIMEOUT", .retry_after = retry_after}),
      "deadline", request.start_by);
}

void Engine::EndSlowReader(ActiveRequest& request) {
  absl::Status status = WithDetails(
      absl::ResourceExhaustedError(absl::StrCat(
          "the client has not read for ", absl::FormatDuration(options_.slow_reader_timeout))),
      {.reason = "SLOW_READER"});
  End(request, std::move(status), "slow_reader", now_());
}

void Engine::End(ActiveRequest& request, absl::Status status, std::string_view finish_reason,
                 absl::Time noticed) {
  for (const RequestPart& part : request.parts) {
    if (part.sequence != nullptr) scheduler_.Remove(part.sequence.get());
  }
  const absl::Time now = now_();
  const absl::Time started = request.started.value_or(now);
  const absl::Time first_token = request.first_token.value_or(now);
  const int64_t generated = request.num_generated();

  FinishedRequest& finished = request.finished;
  finished.task = request.task;
  finished.finish_reason = finish_reason;
  finished.prompt_tokens = request.prompt_tokens;
  finished.generated_tokens = generated;
  finished.queue = NotNegative(started - request.submitted);
  finished.prefill = NotNegative(first_token - started);
  finished.decode = NotNegative(now - first_token);
  if (finish_reason == "cancel" || finish_reason == "deadline") {
    finished.cancel_latency = NotNegative(now - noticed);
  }
  if (!status.ok() && generated > 0) {
    observer_->OnWastedTokens(finish_reason == "slow_reader" ? "error" : finish_reason, generated);
  }

  RequestEnd& end = request.end.emplace();
  if (status.ok()) {
    for (RequestPart& part : request.parts) {
      if (part.end.has_value()) end.completions.push_back(*std::move(part.end));
      if (!part.ddl_stats.empty()) end.ddl_stats.push_back(std::move(part.ddl_stats));
    }
  }
  end.status = std::move(status);
  end.usage = {.prompt_tokens = request.prompt_tokens,
               .completion_tokens = generated,
               .cached_tokens = request.cached_tokens};
  end.timings.queue = finished.queue;
  end.timings.prefill = finished.prefill;
  end.timings.decode = finished.decode;
  if (request.first_token.has_value()) {
    end.timings.time_to_first_token = NotNegative(first_token - request.submitted);
  }
  end.timings.preemptions = request.preemptions;
  ended_.push_back(&request);
}

}  // namespace ddl
