#include "server/engine/engine.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/check.h"
#include "server/engine/warm_up.h"

namespace ddl {
namespace {

constexpr absl::Duration kRateMemory = absl::Seconds(10);
// Beside decodes, before it is known what that costs.
constexpr int32_t kUnmeasuredPrefillBudget = 64;
// Before the clock is read again.
constexpr absl::Duration kLongestSleep = absl::Hours(1);

absl::Status CheckOptions(const EngineOptions& options, const ModelDescription& model) {
  const auto at_least = [](absl::string_view name, int64_t value, int64_t bound) {
    if (value >= bound) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, " must be at least ", bound, ", found ", value));
  };
  absl::Status status;
  status.Update(at_least("max_running_sequences", options.max_running_sequences, 1));
  status.Update(at_least("max_waiting_requests", options.max_waiting_requests, 0));
  status.Update(at_least("max_waiting_tokens", options.max_waiting_tokens, 0));
  status.Update(at_least("max_context_length", options.max_context_length, 2));
  status.Update(at_least("max_step_tokens (so that every running sequence can decode)",
                         options.max_step_tokens,
                         std::min(options.max_running_sequences, model.max_sequences)));
  if (!(options.max_decode_slowdown >= 1.0)) {
    status.Update(absl::InvalidArgumentError(absl::StrCat(
        "max_decode_slowdown must be at least 1, found ", options.max_decode_slowdown)));
  }
  return status;
}

EngineOptions WithinSlots(EngineOptions options, const ModelDescription& model) {
  options.max_running_sequences = std::min(options.max_running_sequences, model.max_sequences);
  return options;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options,
                                                       std::unique_ptr<ModelRunner> runner,
                                                       std::shared_ptr<const Tokenizer> tokenizer,
                                                       EngineObserver* observer,
                                                       std::function<absl::Time()> now) {
  const ModelDescription& model = runner->description();
  if (absl::Status status = CheckOptions(options, model); !status.ok()) return status;
  return std::unique_ptr<Engine>(new Engine(WithinSlots(options, model), std::move(runner),
                                            std::move(tokenizer), observer, std::move(now)));
}

Engine::Engine(const EngineOptions& options, std::unique_ptr<ModelRunner> runner,
               std::shared_ptr<const Tokenizer> tokenizer, EngineObserver* observer,
               std::function<absl::Time()> now)
    : options_(options),
      runner_(std::move(runner)),
      tokenizer_(std::move(tokenizer)),
      observer_(observer),
      now_(std::move(now)),
      blocks_(runner_->description().kv_num_blocks, runner_->description().kv_block_size),
      scheduler_({.max_step_tokens = options.max_step_tokens,
                  .max_running_sequences = options.max_running_sequences,
                  .prefix_cache = options.prefix_cache,
                  .num_slots = std::min(SlotsFor(options.max_running_sequences),
                                        runner_->description().max_sequences)},
                 &blocks_),
      gates_(options.gate_sample_interval, 2 * runner_->description().num_layers),
      starts_(kRateMemory) {
  load_.kv_blocks_free = blocks_.num_free();
}

Engine::~Engine() { Stop(); }

// --- The step ------------------------------------------------------------------------------

bool Engine::Step() {
  const absl::Time begin = now_();
  step_began_ = absl::ToUnixNanos(begin);
  const bool worked = StepFrom(begin);
  step_began_ = kNoStep;
  return worked;
}

bool Engine::StepFrom(absl::Time begin) {
  AcceptCalls();
  EndCancelledAndExpired(begin);
  const bool ended = DeliverEnds();

  const absl::Time scheduling = now_();
  const StepPlan plan = scheduler_.Schedule(PrefillBudget());
  if (plan.chunks.empty()) return ended;
  const absl::Time scheduled = now_();
  MarkStarted(plan, scheduled);

  const std::vector<SequenceChunk> chunks = ToChunks(plan);
  const absl::Time computing = now_();
  auto outputs = runner_->Forward(chunks);
  const absl::Time computed = now_();

  Postprocess(plan, std::move(outputs));
  ReportStep(plan, {.whole = now_() - begin,
                    .scheduling = scheduled - scheduling,
                    .model = computed - computing});
  DeliverEnds();
  return true;
}

void Engine::AcceptCalls() {
  std::vector<std::unique_ptr<ActiveRequest>> submitted;
  std::vector<uint64_t> resumed;
  {
    MutexLock lock(mu_);
    submitted.swap(submitted_);
    cancellations_.swap(cancelled_);
    resumed.swap(resumed_);
  }
  for (std::unique_ptr<ActiveRequest>& request : submitted) {
    for (const RequestPart& part : request->parts) {
      scheduler_.Add(part.sequence.get());
      if (request->wants_prompt_scores) break;  // the others once the scores are there
    }
    const uint64_t id = request->id;
    requests_.emplace(id, std::move(request));
  }
  for (const uint64_t id : resumed) {
    if (const auto it = requests_.find(id); it != requests_.end()) ResumePaused(*it->second);
  }
}

void Engine::EndCancelledAndExpired(absl::Time now) {
  for (const Cancellation& cancellation : cancellations_) {
    const auto it = requests_.find(cancellation.id);
    if (it == requests_.end() || it->second->has_ended()) continue;
    End(*it->second, absl::CancelledError("the request was cancelled"), "cancel",
        cancellation.asked);
  }
  cancellations_.clear();
  for (const auto& [id, request] : requests_) {
    if (request->has_ended()) continue;
    if (now >= request->deadline) {
      EndExpired(*request);
    } else if (!request->started.has_value() && now >= request->start_by) {
      EndQueueTimeout(*request);
    } else if (request->paused.has_value() &&
               now >= *request->paused + options_.slow_reader_timeout) {
      EndSlowReader(*request);
    } else if (now >= request->ages_at) {
      Age(*request, now);
    }
  }
}

int32_t Engine::PrefillBudget() const {
  return step_times_.PrefillBudget(scheduler_.num_decodes(), options_.max_decode_slowdown)
      .value_or(kUnmeasuredPrefillBudget);
}

void Engine::MarkStarted(const StepPlan& plan, absl::Time now) {
  for (const Sequence* sequence : plan.preempted) {
    ActiveRequest& request = RequestOf(*sequence);
    ++request.preemptions;
    // It waits from now on; an input, beside others that have waited for longer.
    if (request.parts.size() == 1) request.ages_at = now + options_.priority_aging;
    observer_->OnPreemption();
  }
  std::vector<ActiveRequest*> just_started;
  {
    MutexLock lock(mu_);
    for (const SequenceStart& start : plan.starts) {
      ActiveRequest& request = RequestOf(*start.sequence);
      if (request.started.has_value()) continue;
      request.started = now;
      request.cached_tokens = start.newly_found;
      just_started.push_back(&request);
      ++started_in_step_;
      CountWaiting(request, -1);
      ++load_.of(request.task).running;
    }
  }
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
    request->sink->OnStart({.cached_tokens = request->cached_tokens, .prompt = {}});
  }
}

std::vector<SequenceChunk> Engine::ToChunks(const StepPlan& plan) {
  std::vector<SequenceChunk> chunks;
  chunks.reserve(plan.chunks.size());
  for (const ScheduledChunk& scheduled : plan.chunks) {
    const Sequence& sequence = *scheduled.sequence;
    const ActiveRequest& request = RequestOf(sequence);
    const RequestPart& part = PartOf(sequence);
    const bool last = scheduled.end == sequence.num_tokens();
    SequenceChunk& chunk = chunks.emplace_back(sequence.ChunkUpTo(scheduled.end));
    chunk.ddl_stats = request.ddl_stats;
    if (part.pooler.has_value()) {
      chunk.hidden = part.pooler->RowsNeeded(last);
      chunk.readout = request.readout;
    } else if (part.completion.has_value() && last) {
      chunk.sample = part.completion->NextSample(sequence.prompt(), sequence.generated());
    }
    const int32_t targets_end = std::min(scheduled.end + 1, sequence.num_prompt_tokens());
    if (part.score_logprobs >= 0 && scheduled.start + 1 < targets_end) {
      chunk.score = {.targets = sequence.tokens().subspan(scheduled.start + 1,
                                                          targets_end - scheduled.start - 1),
                     .vocab_size = VocabSize(),
                     .logprobs = part.score_logprobs};
    }
  }
  gates_.Ask(now_(), absl::MakeSpan(chunks));
  return chunks;
}

void Engine::Postprocess(const StepPlan& plan, absl::StatusOr<std::vector<ChunkOutput>> outputs) {
  const absl::Time now = now_();
  DDL_CHECK(!outputs.ok() || outputs->size() == plan.chunks.size(), "one output per chunk");
  if (outputs.ok()) gates_.Report(*outputs, observer_);
  if (absl::IsUnavailable(outputs.status()) && options_.on_device_lost != nullptr) {
    options_.on_device_lost(outputs.status());
  }
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    const ScheduledChunk& chunk = plan.chunks[i];
    ActiveRequest& request = RequestOf(*chunk.sequence);
    if (request.has_ended()) continue;  // with another of its parts, in this very step
    if (!outputs.ok()) {
      End(request,
          absl::InternalError(
              absl::StrCat("the model failed in this step: ", outputs.status().message())),
          "error", now);
      continue;
    }
    ChunkOutput& output = (*outputs)[i];
    if (!output.status.ok()) {
      observer_->OnNonfiniteLogits();
      End(request, absl::InternalError(output.status.message()), "error", now);
      continue;
    }
    CountComputed(request, *chunk.sequence, scheduler_.MarkComputed(chunk));
    if (now >= request.deadline) {
      EndExpired(request);
    } else {
      AcceptOutput(request, chunk, std::move(output), now);
    }
  }
}

// Before DeliverEnds, so that a client that has its answer finds it counted.
void Engine::ReportStep(const StepPlan& plan, const StepDurations& durations) {
  step_times_.Record(plan.decode_tokens, plan.prefill_tokens, durations.whole);
  observer_->OnStep({.prefill_tokens = plan.prefill_tokens,
                     .decode_tokens = plan.decode_tokens,
                     .sequences = static_cast<int32_t>(plan.chunks.size()),
                     .duration = NotNegative(durations.whole),
                     .scheduler_duration = NotNegative(durations.scheduling),
                     .model_duration = NotNegative(durations.model)});
  MutexLock lock(mu_);
  if (started_in_step_ > 0 || load_.waiting() > 0) {
    starts_.Record(started_in_step_, NotNegative(durations.whole));
  }
  started_in_step_ = 0;
  UpdateLoad();
}

bool Engine::DeliverEnds() {
  if (ended_.empty()) return false;
  const std::vector<ActiveRequest*> ended = std::exchange(ended_, {});
  for (const ActiveRequest* request : ended) observer_->OnFinished(request->finished);
  {
    MutexLock lock(mu_);
    for (const ActiveRequest* request : ended) {
      if (request->started.has_value()) {
        --load_.of(request->task).running;
      } else {
        CountWaiting(*request, -1);
      }
    }
    UpdateLoad();
  }
  for (ActiveRequest* request : ended) {
    request->sink->OnEnd(*std::move(request->end));
    requests_.erase(request->id);
  }
  MutexLock lock(mu_);
  num_requests_ -= static_cast<int32_t>(ended.size());
  if (num_requests_ == 0) idle_.NotifyAll();
  return true;
}

void Engine::UpdateLoad() {
  load_.kv_blocks_free = blocks_.num_free();
  load_.kv_blocks_used = blocks_.num_used();
  load_.kv_blocks_cached = blocks_.num_cached();
  load_.paused_slow_reader = scheduler_.num_paused();
  load_.paused_preempted = scheduler_.num_preempted();
  PublishLoad();
}

// --- Calls ---------------------------------------------------------------------------------

void Engine::Cancel(RequestHandle handle) {
  const absl::Time now = now_();
  MutexLock lock(mu_);
  if (num_requests_ == 0) return;
  cancelled_.push_back({.id = handle.id, .asked = now});
  work_.NotifyOne();
}

void Engine::Resume(RequestHandle handle) {
  MutexLock lock(mu_);
  if (num_requests_ == 0) return;
  resumed_.push_back(handle.id);
  work_.NotifyOne();
}

EngineLoad Engine::load() const {
  MutexLock lock(mu_);
  return load_;
}

absl::Duration Engine::running_step() const {
  const int64_t began = step_began_;
  if (began == kNoStep) return absl::ZeroDuration();
  return NotNegative(now_() - absl::FromUnixNanos(began));
}

// --- Start and stop ------------------------------------------------------------------------

absl::Status Engine::WarmUp() {
  return ddl::WarmUp({.max_step_tokens = options_.max_step_tokens,
                      .max_running_sequences = options_.max_running_sequences,
                      .max_context_length = options_.max_context_length},
                     *runner_, blocks_);
}

void Engine::Start() {
  MutexLock lock(thread_mu_);
  DDL_CHECK(!thread_.joinable(), "the engine was started twice");
  thread_ = std::thread([this] { Run(); });
}

void Engine::Run() {
  // For `top -H` and the like. LibTorch's threads, which the first step starts, inherit it.
  pthread_setname_np(pthread_self(), "ddl-step");
  bool worked = false;
  while (WaitForWork(worked)) worked = Step();
}

bool Engine::WaitForWork(bool worked) {
  // No call can change what the step thread has looked at, so it need not look again.
  const absl::Time timeout = worked ? absl::InfiniteFuture() : NextTimeout();
  MutexLock lock(mu_);
  while (!stopping_ && submitted_.empty() && cancelled_.empty() && resumed_.empty()) {
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

absl::Time Engine::NextTimeout() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [id, request] : requests_) {
    next = std::min(next, request->deadline);
    if (!request->started.has_value()) next = std::min(next, request->start_by);
    if (request->paused.has_value()) {
      next = std::min(next, *request->paused + options_.slow_reader_timeout);
    }
  }
  return next;
}

void Engine::StopAdmission() {
  MutexLock lock(mu_);
  admitting_ = false;
}

bool Engine::WaitUntilIdle(absl::Time deadline) {
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

void Engine::Stop() {
  {
    MutexLock lock(mu_);
    admitting_ = false;
    stopping_ = true;
    work_.NotifyAll();
  }
  MutexLock lock(thread_mu_);
  if (thread_.joinable()) thread_.join();
  // This thread is now the one that steps.
  AcceptCalls();
  for (const auto& [id, request] : requests_) {
    End(*request, absl::UnavailableError("the server stopped"), "error", now_());
  }
  DeliverEnds();
}

}  // namespace ddl
