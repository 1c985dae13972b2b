#include "server/engine/engine_core.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "base/status_details.h"
#include "server/engine/warm_up.h"

namespace ddl {
namespace {

// Beside decodes, before its cost is measured.
constexpr int32_t kUnmeasuredPrefillBudget = 64;

}  // namespace

EngineCore::EngineCore(const EngineOptions& options, std::unique_ptr<ModelRunner> runner,
                       const Tokenizer* tokenizer, EngineObserver* observer, Admission* admission,
                       std::function<absl::Time()> now)
    : options_(options),
      runner_(std::move(runner)),
      observer_(observer),
      admission_(admission),
      now_(std::move(now)),
      vocab_size_(VocabSize(model(), tokenizer)),
      blocks_(model().kv_num_blocks, model().kv_block_size),
      scheduler_(
          {.max_step_tokens = options.max_step_tokens,
           .max_running_sequences = options.max_running_sequences,
           .prefix_cache = options.prefix_cache,
           .num_slots = std::min(SlotsFor(options.max_running_sequences), model().max_sequences)},
          &blocks_),
      gates_(options.gate_sample_interval, 2 * model().num_layers) {}

absl::Status EngineCore::WarmUp() {
  // Where nothing is prepared a small step shows as well that the model runs.
  constexpr int32_t kSmallStep = 16;  // tokens
  const int32_t most = runner_->description().first_steps_are_slow
                           ? std::numeric_limits<int32_t>::max()
                           : kSmallStep;
  return ddl::WarmUp({.max_step_tokens = std::min(options_.max_step_tokens, most),
                      .max_running_sequences = std::min(options_.max_running_sequences, most),
                      .max_context_length = options_.max_context_length},
                     *runner_, blocks_);
}

// --- A turn --------------------------------------------------------------------------------

bool EngineCore::Step() {
  absl::Time now = now_();
  step_began_ = absl::ToUnixNanos(now);
  bool worked = !steps_.empty();
  if (!steps_.empty() && !steps_.back().may_be_followed) {
    Deliver();
    FinishStep();
    now = now_();
  }
  AcceptCalls();
  EndCancelledAndExpired(now);
  const bool begun = BeginStep(now);
  // A runner that computes only in Finish has not begun: no client waits for a delivery meanwhile.
  const bool delivered = Deliver();
  const auto in_flight = static_cast<int32_t>(steps_.size());
  if (in_flight > 0 && (!begun || in_flight == model().max_in_flight_steps)) FinishStep();
  step_began_ = kNoStep;
  worked = worked || begun || delivered;
  return worked;
}

bool EngineCore::BeginStep(absl::Time turn) {
  const absl::Time scheduling = now_();
  const StepPlan plan = scheduler_.Schedule(PrefillBudget());
  const absl::Time scheduled = now_();
  const int32_t started_requests = MarkStarted(plan, scheduled);
  if (plan.chunks.empty()) return false;

  InFlightStep& step = steps_.emplace_back();
  step.decode_tokens = plan.decode_tokens;
  step.prefill_tokens = plan.prefill_tokens;
  step.started_requests = started_requests;
  step.begin = turn;
  step.scheduling = scheduled - scheduling;
  step.Reserve(plan);
  std::vector<SequenceChunk> chunks;
  chunks.reserve(plan.chunks.size());
  for (const ScheduledChunk& chunk : plan.chunks) {
    chunks.push_back(
        step.Add(chunk, RequestOf(*chunk.sequence), PartOf(*chunk.sequence), vocab_size_));
  }
  step.gates_asked = gates_.Ask(now_(), absl::MakeSpan(chunks));
  const absl::Time beginning = now_();
  runner_->Begin(chunks);
  step.in_runner = now_() - beginning;
  step.MarkBegun(&scheduler_);
  step.may_be_followed = step.MayBeFollowed(chunks);
  return true;
}

void EngineCore::FinishStep(const absl::Status& before) {
  InFlightStep step = std::move(steps_.front());
  steps_.pop_front();
  const absl::Time waiting = now_();
  absl::StatusOr<std::vector<ChunkOutput>> outputs = runner_->Finish();
  const absl::Time computed = now_();
  step.in_runner += computed - waiting;
  if (outputs.ok() && !before.ok()) outputs = before;
  const absl::Status status = outputs.status();
  ProcessStepOutput(step, std::move(outputs), computed);
  ReportStep(step);
  if (!status.ok() && !steps_.empty()) FinishStep(status);
}

void EngineCore::ProcessStepOutput(const InFlightStep& step,
                                   absl::StatusOr<std::vector<ChunkOutput>> outputs,
                                   absl::Time now) {
  DDL_CHECK(!outputs.ok() || outputs->size() == step.chunks.size(), "not one output per chunk");
  if (outputs.ok()) gates_.Report(step.gates_asked, *outputs, observer_);
  if (absl::IsUnavailable(outputs.status()) && options_.on_device_lost != nullptr) {
    options_.on_device_lost(outputs.status());
  }
  for (size_t i = 0; i < step.chunks.size(); ++i) {
    const InFlightStep::Chunk& chunk = step.chunks[i];
    ActiveRequest& request = *chunk.request;
    // Cancelled meanwhile, or ended in the step before, or with another of its parts in this one.
    if (request.has_ended() || chunk.part->sequence == nullptr) continue;
    if (!outputs.ok()) {
      End(request,
          absl::InternalError(
              absl::StrCat("the model failed in this step: ", outputs.status().message())),
          EndReason::kError, now);
      continue;
    }
    ChunkOutput& output = (*outputs)[i];
    if (!output.status.ok()) {
      observer_->OnNonfiniteLogits();
      End(request, absl::InternalError(output.status.message()), EndReason::kError, now);
      continue;
    }
    CountComputed(chunk);
    if (now >= request.deadline) {
      EndExpired(request);
    } else {
      AcceptOutput(chunk, std::move(output), now);
    }
  }
}

void EngineCore::Settle() {
  while (!steps_.empty()) {
    Deliver();
    FinishStep();
  }
  Deliver();
}

// --- Before a step -------------------------------------------------------------------------

void EngineCore::AcceptCalls() {
  Admission::Calls calls = admission_->TakeCalls();
  for (std::unique_ptr<ActiveRequest>& request : calls.submitted) {
    for (const RequestPart& part : request->parts) {
      scheduler_.Add(part.sequence.get());
      if (request->wants_prompt_scores) break;  // the others once the scores are there
    }
    const uint64_t id = request->id;
    requests_.emplace(id, std::move(request));
  }
  for (const uint64_t id : calls.resumed) {
    if (const auto it = requests_.find(id); it != requests_.end()) ResumePaused(*it->second);
  }
  cancellations_ = std::move(calls.cancelled);
}

void EngineCore::EndCancelledAndExpired(absl::Time now) {
  for (const Admission::Cancellation& cancellation : cancellations_) {
    const auto it = requests_.find(cancellation.id);
    if (it == requests_.end() || it->second->has_ended()) continue;
    End(*it->second, absl::CancelledError("the request was cancelled"), EndReason::kCancel,
        cancellation.asked);
  }
  cancellations_.clear();
  for (const auto& [id, request] : requests_) {
    if (request->has_ended()) continue;
    const ActiveRequest::Timeouts timeouts = request->timeouts(options_.slow_reader_timeout);
    if (now >= timeouts.deadline) {
      EndExpired(*request);
    } else if (now >= timeouts.queue) {
      EndQueueTimeout(*request);
    } else if (now >= timeouts.slow_reader) {
      EndSlowReader(*request);
    } else if (now >= request->ages_at) {
      Promote(*request, now);
    }
  }
}

absl::Time EngineCore::NextTimeout() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [id, request] : requests_) {
    next = std::min(next, request->timeouts(options_.slow_reader_timeout).first());
  }
  return next;
}

int32_t EngineCore::PrefillBudget() const {
  return step_times_.PrefillBudget(scheduler_.num_decodes(), options_.max_decode_slowdown)
      .value_or(kUnmeasuredPrefillBudget);
}

int32_t EngineCore::MarkStarted(const StepPlan& plan, absl::Time now) {
  for (const Sequence* sequence : plan.preempted) {
    ActiveRequest& request = RequestOf(*sequence);
    ++request.preemptions;
    // It waits from now on; an input, beside others that have waited for longer.
    if (request.parts.size() == 1) request.ages_at = now + options_.priority_aging;
    observer_->OnPreemption();
  }
  std::vector<ActiveRequest*> just_started;
  for (const SequenceStart& start : plan.starts) {
    ActiveRequest& request = RequestOf(*start.sequence);
    if (request.started.has_value()) continue;
    request.started = now;
    request.cached_tokens = start.newly_found;
    just_started.push_back(&request);
  }
  if (!just_started.empty()) admission_->MarkStarted(just_started);
  for (const SequenceStart& start : plan.starts) {
    const Sequence& sequence = *start.sequence;
    if (start.looked_up && start.first) {
      observer_->OnPrefixCacheQuery(sequence.num_tokens(), start.found);
    }
    const ActiveRequest& request = RequestOf(sequence);
    if (start.newly_found > 0 && CountsPrompt(request, sequence)) {
      observer_->OnPromptTokens(request.task, PromptSource::kCached, start.newly_found);
    }
  }
  for (ActiveRequest* request : just_started) {
    if (request->wants_prompt_scores) continue;
    deliveries_.AddStart(*request, {.cached_tokens = request->cached_tokens, .prompt = {}});
  }
  return static_cast<int32_t>(just_started.size());
}

// --- While it is computed ------------------------------------------------------------------

bool EngineCore::Deliver() {
  if (deliveries_.empty() && ended_.empty()) return false;
  deliveries_.Deliver(observer_, [this](ActiveRequest& request) {
    if (!request.has_ended()) Pause(request, now_());
  });
  DeliverEnds();
  if (options_.on_delivered != nullptr) options_.on_delivered();
  return true;
}

void EngineCore::DeliverEnds() {
  if (ended_.empty()) return;
  const std::vector<ActiveRequest*> ended = std::exchange(ended_, {});
  for (const ActiveRequest* request : ended) observer_->OnFinished(request->finished);
  admission_->MarkEnded(ended, scheduler_load());
  for (ActiveRequest* request : ended) {
    request->sink->OnEnd(*request->end);
    auto node = requests_.extract(request->id);
    if (!steps_.empty()) steps_.back().ended_requests.push_back(std::move(node.mapped()));
  }
  admission_->MarkDelivered(static_cast<int32_t>(ended.size()));
}

// --- What a step brought -------------------------------------------------------------------

void EngineCore::CountComputed(const InFlightStep::Chunk& chunk) {
  const Sequence& sequence = *chunk.scheduled.sequence;
  if (sequence.holds_slot() && sequence.num_runs() == chunk.run) {
    scheduler_.MarkComputed(chunk.scheduled);
  }
  if (chunk.computed.prompt > 0 && CountsPrompt(*chunk.request, sequence)) {
    observer_->OnPromptTokens(chunk.request->task, PromptSource::kComputed, chunk.computed.prompt);
  }
  if (chunk.computed.again > 0) {
    observer_->OnWastedTokens(WasteReason::kPreemptRecompute, chunk.computed.again);
  }
}

void EngineCore::AcceptOutput(const InFlightStep::Chunk& chunk, ChunkOutput output,
                              absl::Time now) {
  ActiveRequest& request = *chunk.request;
  RequestPart& part = *chunk.part;
  const Sequence& sequence = *chunk.scheduled.sequence;
  if (chunk.scheduled.start == 0) part.Restart();  // perhaps computed again
  std::ranges::move(output.scored, std::back_inserter(part.scored));
  if (request.ddl_stats) part.AppendStats(output, 2 * model().num_layers);

  if (part.completion.has_value()) {
    if (request.wants_prompt_scores && part.score_logprobs >= 0 &&
        chunk.scheduled.end >= sequence.num_prompt_tokens()) {
      part.score_logprobs = -1;
      deliveries_.AddStart(request, {.cached_tokens = request.cached_tokens,
                                     .prompt = std::exchange(part.scored, {})});
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
    deliveries_.AddEmbedding(request, {index, part.pooler->Take()});
  } else {
    deliveries_.AddScore(request, {index, std::move(part.scored)});
  }
  FinishPart(request, part, now);
}

void EngineCore::AcceptToken(ActiveRequest& request, RequestPart& part, SampledToken token,
                             absl::Time now) {
  if (!request.first_token.has_value()) request.first_token = now;
  deliveries_.AddToken(request, part, /*first=*/!part.last_token.has_value(),
                       NotNegative(now - part.last_token.value_or(request.submitted)));
  part.last_token = now;

  if (part.sequence->num_pending() > 0) part.sequence->SetPending(token.id);
  if (std::optional<CompletionEnd> end = part.completion->Accept(std::move(token))) {
    part.end = std::move(end);
    FinishPart(request, part, now);
  }
}

void EngineCore::FinishPart(ActiveRequest& request, RequestPart& part, absl::Time now) {
  scheduler_.Remove(part.sequence.get());
  if (!steps_.empty()) steps_.back().ended_sequences.push_back(std::move(part.sequence));
  part.sequence.reset();
  if (--request.parts_left > 0) return;
  const std::optional<CompletionEnd>& first = request.parts.front().end;
  End(request, absl::OkStatus(),
      first.has_value() ? ToEndReason(first->finish_reason) : EndReason::kStop, now);
}

// Before its ends are delivered, so that a client that has its answer finds it counted.
void EngineCore::ReportStep(const InFlightStep& step) {
  // Since it was begun, or since the runner was done with the step before.
  const absl::Time now = now_();
  const absl::Duration whole = NotNegative(now - std::max(step.begin, last_step_ended_));
  last_step_ended_ = now;
  step_times_.Record(step.decode_tokens, step.prefill_tokens, whole);
  observer_->OnStep({.prefill_tokens = step.prefill_tokens,
                     .decode_tokens = step.decode_tokens,
                     .sequences = static_cast<int32_t>(step.chunks.size()),
                     .duration = whole,
                     .scheduler_duration = NotNegative(step.scheduling),
                     .model_duration = NotNegative(step.in_runner)});
  admission_->MarkStep(step.started_requests, whole, scheduler_load());
}

SchedulerLoad EngineCore::scheduler_load() const {
  return {.paused_slow_reader = scheduler_.num_paused(),
          .paused_preempted = scheduler_.num_preempted(),
          .kv_blocks_free = blocks_.num_free(),
          .kv_blocks_used = blocks_.num_used(),
          .kv_blocks_cached = blocks_.num_cached()};
}

absl::Duration EngineCore::running_step() const {
  const int64_t began = step_began_;
  if (began == kNoStep) return absl::ZeroDuration();
  return NotNegative(now_() - absl::FromUnixNanos(began));
}

// --- Pauses, waiting and ends --------------------------------------------------------------

void EngineCore::Pause(ActiveRequest& request, absl::Time now) {
  if (request.paused.has_value()) return;  // by another of its parts, or a step before
  request.paused = now;
  observer_->OnStreamStall();
  for (const RequestPart& part : request.parts) {
    if (part.sequence != nullptr) scheduler_.Pause(part.sequence.get());
  }
  admission_->UpdateLoad(scheduler_load());  // no step may follow that would
}

void EngineCore::ResumePaused(ActiveRequest& request) {
  if (!request.paused.has_value() || request.has_ended()) return;
  request.paused.reset();
  for (const RequestPart& part : request.parts) {
    if (part.sequence != nullptr) scheduler_.Resume(part.sequence.get());
  }
}

void EngineCore::Promote(ActiveRequest& request, absl::Time now) {
  request.ages_at = now + options_.priority_aging;
  for (const RequestPart& part : request.parts) {
    if (part.sequence != nullptr && part.sequence->state() == SequenceState::kWaiting) {
      scheduler_.Promote(part.sequence.get());
    }
  }
}

void EngineCore::EndExpired(ActiveRequest& request) {
  End(request,
      absl::DeadlineExceededError(request.started.has_value()
                                      ? "the deadline passed while the request was running"
                                      : "the deadline passed while the request was queued"),
      EndReason::kDeadline, request.deadline);
}

void EngineCore::EndQueueTimeout(ActiveRequest& request) {
  End(request,
      WithDetails(absl::ResourceExhaustedError(
                      absl::StrCat("the request was still queued after its queue_timeout of ",
                                   absl::FormatDuration(request.start_by - request.submitted))),
                  {.reason = "QUEUE_TIMEOUT", .retry_after = admission_->RetryAfter()}),
      EndReason::kDeadline, request.start_by);
}

void EngineCore::EndSlowReader(ActiveRequest& request) {
  absl::Status status = WithDetails(
      absl::ResourceExhaustedError(absl::StrCat(
          "the client has not read for ", absl::FormatDuration(options_.slow_reader_timeout))),
      {.reason = "SLOW_READER"});
  End(request, std::move(status), EndReason::kSlowReader, now_());
}

void EngineCore::End(ActiveRequest& request, absl::Status status, EndReason reason,
                     absl::Time noticed) {
  for (const RequestPart& part : request.parts) {
    if (part.sequence != nullptr) scheduler_.Remove(part.sequence.get());
  }
  const int64_t generated = request.num_generated();
  if (!status.ok() && generated > 0) observer_->OnWastedTokens(ToWasteReason(reason), generated);
  request.Finish(std::move(status), reason, now_(), noticed);
  ended_.push_back(&request);
}

void EngineCore::EndAll(const absl::Status& status) {
  AcceptCalls();
  Settle();
  for (const auto& [id, request] : requests_) End(*request, status, EndReason::kError, now_());
  Deliver();
}

}  // namespace ddl
