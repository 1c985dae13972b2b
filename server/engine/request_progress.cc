#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_details.h"
#include "server/engine/engine.h"

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

void Engine::CountComputed(const StepUnderWay::Chunk& chunk) {
  const Sequence& sequence = *chunk.scheduled.sequence;
  if (sequence.holds_slot() && sequence.num_runs() == chunk.run) {
    scheduler_.MarkComputed(chunk.scheduled);
  }
  if (chunk.computed.prompt > 0 && CountsPrompt(*chunk.request, sequence)) {
    observer_->OnPromptTokens(chunk.request->task, PromptSource::kComputed, chunk.computed.prompt);
  }
  if (chunk.computed.again > 0) {
    observer_->OnWastedTokens("preempt_recompute", chunk.computed.again);
  }
}

void Engine::AcceptOutput(const StepUnderWay::Chunk& chunk, ChunkOutput output, absl::Time now) {
  ActiveRequest& request = *chunk.request;
  RequestPart& part = *chunk.part;
  const Sequence& sequence = *chunk.scheduled.sequence;
  if (chunk.scheduled.start == 0) {  // perhaps computed again
    part.scored.clear();
    part.ddl_stats.clear();
    if (part.pooler.has_value()) part.pooler->Reset();
  }
  std::ranges::move(output.scored, std::back_inserter(part.scored));
  if (request.ddl_stats) AppendStats(output, 2 * model().num_layers, &part.ddl_stats);

  if (part.completion.has_value()) {
    if (request.wants_prompt_scores && part.score_logprobs >= 0 &&
        chunk.scheduled.end >= sequence.num_prompt_tokens()) {
      part.score_logprobs = -1;
      messages_.push_back({&request, RequestStart{.cached_tokens = request.cached_tokens,
                                                  .prompt = std::exchange(part.scored, {})}});
      for (RequestPart& other : request.parts) {
        if (&other != &part) scheduler_.Add(other.sequence.get());
      }
    }
    if (output.sampled.has_value()) AcceptToken(request, part, *std::move(output.sampled), now);
    return;
  }
  if (part.pooler.has_value()) part.pooler->Add(output.hidden);
  if (chunk.scheduled.end < sequence.num_tokens()) return;
  const int32_t index = sequence.rank().index;
  if (part.pooler.has_value()) {
    messages_.push_back({&request, InputEmbedding{index, part.pooler->Take()}});
  } else {
    messages_.push_back({&request, InputScore{index, std::move(part.scored)}});
  }
  FinishPart(request, part, now);
}

void Engine::AcceptToken(ActiveRequest& request, RequestPart& part, SampledToken token,
                         absl::Time now) {
  if (!request.first_token.has_value()) request.first_token = now;
  messages_.push_back(
      {&request,
       TokenMessage{.part = &part,
                    .first = !part.last_token.has_value(),
                    .latency = NotNegative(now - part.last_token.value_or(request.submitted))}});
  part.last_token = now;

  if (part.sequence->num_unknown() > 0) part.sequence->SetUnknown(token.id);
  if (std::optional<CompletionEnd> end = part.completion->Accept(std::move(token))) {
    part.end = std::move(end);
    FinishPart(request, part, now);
  }
}

void Engine::FinishPart(ActiveRequest& request, RequestPart& part, absl::Time now) {
  scheduler_.Remove(part.sequence.get());
  if (!steps_.empty()) steps_.back().ended_sequences.push_back(std::move(part.sequence));
  part.sequence.reset();
  if (--request.parts_left > 0) return;
  const std::optional<CompletionEnd>& first = request.parts.front().end;
  End(request, absl::OkStatus(), first.has_value() ? NameOf(first->finish_reason) : "stop", now);
}

// --- Pauses, waiting and ends --------------------------------------------------------------

void Engine::Pause(ActiveRequest& request, absl::Time now) {
  if (request.paused.has_value()) return;  // by another of its parts, or a step before
  request.paused = now;
  observer_->OnStreamStall();
  for (const RequestPart& part : request.parts) {
    if (part.sequence != nullptr) scheduler_.Pause(part.sequence.get());
  }
  MutexLock lock(mu_);
  UpdateLoad();  // no step may follow that would
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
