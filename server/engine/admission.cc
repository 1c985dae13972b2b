#include "server/engine/admission.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_details.h"

namespace ddl {
namespace {

constexpr absl::Duration kRateMemory = absl::Seconds(10);
// How long a refused client is asked to wait: the measured delay of the queue, within these bounds.
constexpr absl::Duration kShortestRetry = absl::Milliseconds(50);
constexpr absl::Duration kLongestRetry = absl::Minutes(1);
constexpr absl::Duration kUnmeasuredDelay = absl::Seconds(1);
constexpr absl::Duration kRetryWhenDraining = absl::Seconds(1);
// Before the clock is read again.
constexpr absl::Duration kLongestSleep = absl::Hours(1);

}  // namespace

Admission::Admission(const EngineOptions& options, const ModelDescription& model,
                     EngineObserver* observer, std::function<absl::Time()> now)
    : options_(options),
      cache_tokens_(int64_t{model.kv_num_blocks} * model.kv_block_size),
      observer_(observer),
      now_(std::move(now)),
      starts_(kRateMemory) {
  load_.kv_blocks_free = model.kv_num_blocks;
}

// --- For the engine's callers ---------------------------------------------------------------

absl::Status Admission::Submit(std::unique_ptr<ActiveRequest> request) {
  MutexLock lock(mu_);
  if (absl::Status status = Check(*request); !status.ok()) return status;
  ++num_requests_;
  CountWaiting(*request, 1);
  calls_.submitted.push_back(std::move(request));
  PublishLoad();
  work_.NotifyOne();
  return absl::OkStatus();
}

absl::Status Admission::Check(const ActiveRequest& request) const {
  if (!admitting_) {
    return Refuse(RejectReason::kDraining,
                  WithDetails(absl::UnavailableError("the server is draining"),
                              {.reason = "DRAINING", .retry_after = kRetryWhenDraining}));
  }
  if (request.submitted >= request.deadline) {
    return Refuse(RejectReason::kDeadlineInfeasible,
                  absl::DeadlineExceededError("the deadline had passed when the request came"));
  }
  if (absl::Status status = CheckSize(request); !status.ok()) {
    return Refuse(RejectReason::kTooLarge, std::move(status));
  }
  const int32_t running = load_.running();
  const int32_t waiting = load_.waiting();
  if (running + waiting >= options_.max_running_sequences + options_.max_waiting_requests) {
    return Refuse(RejectReason::kQueueFull,
                  WithDetails(absl::ResourceExhaustedError(
                                  absl::StrCat("too many requests: ", running, " are running and ",
                                               waiting, " are waiting")),
                              {.reason = "QUEUE_FULL", .retry_after = RetryAfterLocked()}));
  }
  const int64_t most_tokens = options_.max_waiting_tokens;
  if (load_.waiting_tokens > 0 && load_.waiting_tokens + request.prompt_tokens > most_tokens) {
    return Refuse(RejectReason::kTokensFull,
                  WithDetails(absl::ResourceExhaustedError(absl::StrCat(
                                  "too many waiting prompt tokens: ", load_.waiting_tokens,
                                  " are waiting, this request has ", request.prompt_tokens,
                                  ", the limit is ", most_tokens)),
                              {.reason = "TOKENS_FULL", .retry_after = RetryAfterLocked()}));
  }
  // An engine that is not full, or has measured nothing, tries.
  const int32_t ahead = NumAhead(request.priority);
  const std::optional<double> per_second = starts_.per_second();
  if (running + waiting >= options_.max_running_sequences && ahead > 0 && per_second.has_value() &&
      request.submitted + absl::Seconds((ahead + 1) / *per_second) >= request.deadline) {
    return Refuse(
        RejectReason::kDeadlineInfeasible,
        WithDetails(absl::ResourceExhaustedError(
                        absl::StrCat("the deadline cannot be met: ", ahead,
                                     " requests are waiting to start before it, at ", *per_second,
                                     " per second, and it is in ",
                                     absl::FormatDuration(request.deadline - request.submitted))),
                    {.reason = "DEADLINE_INFEASIBLE", .retry_after = RetryAfterLocked()}));
  }
  return absl::OkStatus();
}

absl::Status Admission::CheckSize(const ActiveRequest& request) const {
  // Several completions share their prompt's blocks when they run together, but need not: each
  // must fit on its own.
  const int64_t needed = request.longest_sequence;
  if (needed <= cache_tokens_) return absl::OkStatus();
  return WithDetails(absl::FailedPreconditionError(
                         absl::StrCat("the request can never fit in the KV cache: it needs ",
                                      needed, " tokens, the cache has ", cache_tokens_)),
                     {.reason = "TOO_LARGE",
                      .metadata = {{"needed_tokens", std::to_string(needed)},
                                   {"available_tokens", std::to_string(cache_tokens_)}}});
}

absl::Status Admission::Refuse(RejectReason reason, absl::Status status) const {
  observer_->OnRejected(reason);
  return status;
}

int32_t Admission::NumAhead(Priority priority) const {
  int32_t ahead = 0;
  for (int32_t i = 0; i <= static_cast<int32_t>(priority); ++i) ahead += waiting_by_priority_[i];
  return ahead;
}

void Admission::Cancel(uint64_t id) {
  const absl::Time now = now_();
  MutexLock lock(mu_);
  if (num_requests_ == 0) return;
  calls_.cancelled.push_back({.id = id, .asked = now});
  work_.NotifyOne();
}

void Admission::Resume(uint64_t id) {
  MutexLock lock(mu_);
  if (num_requests_ == 0) return;
  calls_.resumed.push_back(id);
  work_.NotifyOne();
}

void Admission::StopAdmission() {
  MutexLock lock(mu_);
  admitting_ = false;
}

void Admission::Stop() {
  MutexLock lock(mu_);
  admitting_ = false;
  stopping_ = true;
  work_.NotifyAll();
}

bool Admission::WaitUntilIdle(absl::Time deadline) {
  MutexLock lock(mu_);
  while (num_requests_ > 0) {
    if (deadline == absl::InfiniteFuture()) {
      idle_.Wait(mu_);
    } else if (!idle_.WaitUntil(mu_, absl::ToChronoTime(deadline))) {
      return num_requests_ == 0;
    }
  }
  return true;
}

EngineLoad Admission::load() const {
  MutexLock lock(mu_);
  return load_;
}

absl::Duration Admission::RetryAfter() const {
  MutexLock lock(mu_);
  return RetryAfterLocked();
}

absl::Duration Admission::RetryAfterLocked() const {
  return std::clamp(load_.queue_delay, kShortestRetry, kLongestRetry);
}

// --- For the step thread --------------------------------------------------------------------

Admission::Calls Admission::TakeCalls() {
  MutexLock lock(mu_);
  return std::exchange(calls_, {});
}

bool Admission::WaitForWork(bool worked, absl::Time timeout) {
  MutexLock lock(mu_);
  while (!stopping_ && calls_.submitted.empty() && calls_.cancelled.empty() &&
         calls_.resumed.empty()) {
    if (worked && num_requests_ > 0) break;
    const absl::Duration left = timeout - now_();
    if (left <= absl::ZeroDuration()) break;
    if (left == absl::InfiniteDuration()) {
      work_.Wait(mu_);
    } else {
      work_.WaitUntil(mu_, absl::ToChronoTime(absl::Now() + std::min(left, kLongestSleep)));
    }
  }
  return !stopping_;
}

void Admission::MarkStarted(absl::Span<ActiveRequest* const> requests) {
  MutexLock lock(mu_);
  for (const ActiveRequest* request : requests) {
    CountWaiting(*request, -1);
    ++load_.of(request->task).running;
  }
}

void Admission::MarkStep(int32_t started, absl::Duration duration, const SchedulerLoad& load) {
  MutexLock lock(mu_);
  if (started > 0 || load_.waiting() > 0) starts_.Record(started, duration);
  SetLoad(load);
}

void Admission::MarkEnded(absl::Span<ActiveRequest* const> requests, const SchedulerLoad& load) {
  MutexLock lock(mu_);
  for (const ActiveRequest* request : requests) {
    if (request->started.has_value()) {
      --load_.of(request->task).running;
    } else {
      CountWaiting(*request, -1);
    }
  }
  SetLoad(load);
}

void Admission::MarkDelivered(int32_t requests) {
  MutexLock lock(mu_);
  num_requests_ -= requests;
  if (num_requests_ == 0) idle_.NotifyAll();
}

void Admission::UpdateLoad(const SchedulerLoad& load) {
  MutexLock lock(mu_);
  SetLoad(load);
}

void Admission::CountWaiting(const ActiveRequest& request, int32_t change) {
  load_.of(request.task).waiting += change;
  load_.waiting_tokens += change * request.prompt_tokens;
  waiting_by_priority_[static_cast<size_t>(request.priority)] += change;
}

void Admission::SetLoad(const SchedulerLoad& load) {
  load_.kv_blocks_free = load.kv_blocks_free;
  load_.kv_blocks_used = load.kv_blocks_used;
  load_.kv_blocks_cached = load.kv_blocks_cached;
  load_.paused_slow_reader = load.paused_slow_reader;
  load_.paused_preempted = load.paused_preempted;
  PublishLoad();
}

void Admission::PublishLoad() {
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
