#include "server/engine/engine.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
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
  absl::Time now = now_();
  step_began_ = absl::ToUnixNanos(now);
  bool worked = !steps_.empty();
  if (!steps_.empty() && !steps_.back().may_be_followed) {
    Tell();
    FinishStep();
    now = now_();
  }
  AcceptCalls();
  EndCancelledAndExpired(now);
  const bool begun = BeginStep(now);
  // A runner that computes only in Finish has not begun: nobody waits for a message meanwhile.
  const bool told = Tell();
  const auto under_way = static_cast<int32_t>(steps_.size());
  if (under_way > 0 && (!begun || under_way == model().max_steps_under_way)) FinishStep();
  step_began_ = kNoStep;
  worked = worked || begun || told;
  return worked;
}

void Engine::Settle() {
  while (!steps_.empty()) {
    Tell();
    FinishStep();
  }
  Tell();
}

bool Engine::BeginStep(absl::Time turn) {
  const absl::Time scheduling = now_();
  const StepPlan plan = scheduler_.Schedule(PrefillBudget());
  const absl::Time scheduled = now_();
  const int32_t started_requests = MarkStarted(plan, scheduled);
  if (plan.chunks.empty()) return false;

  StepUnderWay& step = steps_.emplace_back();
  step.decode_tokens = plan.decode_tokens;
  step.prefill_tokens = plan.prefill_tokens;
  step.started_requests = started_requests;
  step.begin = turn;
  step.scheduling = scheduled - scheduling;
  const std::vector<SequenceChunk> chunks = ToChunks(plan, &step);
  const absl::Time beginning = now_();
  runner_->Begin(chunks);
  step.in_runner = now_() - beginning;
  MarkBegun(&step);
  step.may_be_followed = MayBeFollowed(step, chunks);
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

int32_t Engine::MarkStarted(const StepPlan& plan, absl::Time now) {
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
    messages_.push_back(
        {request, RequestStart{.cached_tokens = request->cached_tokens, .prompt = {}}});
  }
  return static_cast<int32_t>(just_started.size());
}

std::vector<SequenceChunk> Engine::ToChunks(const StepPlan& plan, StepUnderWay* step) {
  size_t num_blocks = 0;
  for (const ScheduledChunk& scheduled : plan.chunks) {
    num_blocks += scheduled.sequence->block_table().size();
  }
  step->block_tables.reserve(num_blocks);  // the chunks point into it
  step->chunks.reserve(plan.chunks.size());
  std::vector<SequenceChunk> chunks;
  chunks.reserve(plan.chunks.size());
  for (const ScheduledChunk& scheduled : plan.chunks) {
    const Sequence& sequence = *scheduled.sequence;
    ActiveRequest& request = RequestOf(sequence);
    RequestPart& part = PartOf(sequence);
    step->chunks.push_back({.scheduled = scheduled,
                            .request = &request,
                            .part = &part,
                            .run = sequence.num_runs(),
                            .computed = {}});
    const bool last = scheduled.end == sequence.num_tokens();
    SequenceChunk& chunk = chunks.emplace_back(sequence.ChunkUpTo(scheduled.end));
    const size_t first_block = step->block_tables.size();
    step->block_tables.insert(step->block_tables.end(), chunk.block_table.begin(),
                              chunk.block_table.end());
    chunk.block_table = absl::MakeConstSpan(step->block_tables).subspan(first_block);
    if (last && sequence.num_unknown() > 0) chunk.last_token_from = part.chunk;
    part.chunk = static_cast<int32_t>(chunks.size()) - 1;
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
  step->gates_asked = gates_.Ask(now_(), absl::MakeSpan(chunks));
  return chunks;
}

// What the next step can be scheduled from, while this one is computed.
void Engine::MarkBegun(StepUnderWay* step) {
  for (StepUnderWay::Chunk& chunk : step->chunks) {
    Sequence& sequence = *chunk.scheduled.sequence;
    const bool draws =
        chunk.part->completion.has_value() && chunk.scheduled.end == sequence.num_tokens();
    chunk.computed = scheduler_.MarkBegun(chunk.scheduled);
    if (draws && !chunk.part->completion->IsFullAt(sequence.num_generated() + 1)) {
      sequence.AppendUnknown();
    }
  }
}

// What the next step reads of this one may be known to the device alone, as long as nothing else
// depends on it: how a token is drawn, or what the host makes of this step.
bool Engine::MayBeFollowed(const StepUnderWay& step, absl::Span<const SequenceChunk> chunks) {
  return std::none_of(chunks.begin(), chunks.end(), NeedsHost) &&
         std::ranges::none_of(step.chunks, [](const StepUnderWay::Chunk& chunk) {
           return chunk.scheduled.sequence->num_unknown() > 0 &&
                  chunk.part->completion->seen_by_draws();
         });
}

bool Engine::Tell() {
  if (messages_.empty() && ended_.empty()) return false;
  for (Message& message : messages_) Tell(message);
  messages_.clear();
  TellEnds();
  if (options_.on_told != nullptr) options_.on_told();
  return true;
}

void Engine::Tell(Message& message) {
  ActiveRequest& request = *message.request;
  if (auto* token = std::get_if<TokenMessage>(&message.what)) {
    observer_->OnGeneratedTokens(1);
    if (token->first) {
      observer_->OnTimeToFirstToken(token->latency);
    } else {
      observer_->OnInterTokenLatency(token->latency);
    }
    CompletionDelta delta = token->part->completion->TakeDelta();
    if (delta.text.empty() && delta.tokens.empty()) return;
    const SinkState sink = request.sink->OnDelta(std::move(delta));
    if (sink == SinkState::kFull && !request.has_ended()) Pause(request, now_());
  } else if (auto* start = std::get_if<RequestStart>(&message.what)) {
    request.sink->OnStart(std::move(*start));
  } else if (auto* embedding = std::get_if<InputEmbedding>(&message.what)) {
    request.sink->OnEmbedding(std::move(*embedding));
  } else {
    request.sink->OnScore(std::get<InputScore>(std::move(message.what)));
  }
}

void Engine::TellEnds() {
  if (ended_.empty()) return;
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
    request->sink->OnEnd(*request->end);
    auto node = requests_.extract(request->id);
    if (!steps_.empty()) steps_.back().ended_requests.push_back(std::move(node.mapped()));
  }
  MutexLock lock(mu_);
  num_requests_ -= static_cast<int32_t>(ended.size());
  if (num_requests_ == 0) idle_.NotifyAll();
}

void Engine::FinishStep(const absl::Status& before) {
  StepUnderWay step = std::move(steps_.front());
  steps_.pop_front();
  const absl::Time waiting = now_();
  absl::StatusOr<std::vector<ChunkOutput>> outputs = runner_->Finish();
  const absl::Time computed = now_();
  step.in_runner += computed - waiting;
  if (outputs.ok() && !before.ok()) outputs = before;
  const absl::Status status = outputs.status();
  Decide(step, std::move(outputs), computed);
  ReportStep(step);
  if (!status.ok() && !steps_.empty()) FinishStep(status);
}

void Engine::Decide(const StepUnderWay& step, absl::StatusOr<std::vector<ChunkOutput>> outputs,
                    absl::Time now) {
  DDL_CHECK(!outputs.ok() || outputs->size() == step.chunks.size(), "one output per chunk");
  if (outputs.ok()) gates_.Report(step.gates_asked, *outputs, observer_);
  if (absl::IsUnavailable(outputs.status()) && options_.on_device_lost != nullptr) {
    options_.on_device_lost(outputs.status());
  }
  for (size_t i = 0; i < step.chunks.size(); ++i) {
    const StepUnderWay::Chunk& chunk = step.chunks[i];
    ActiveRequest& request = *chunk.request;
    // It was cancelled meanwhile, or ended in the step before, or with another of its parts in this
    // very step.
    if (request.has_ended() || chunk.part->sequence == nullptr) continue;
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
    CountComputed(chunk);
    if (now >= request.deadline) {
      EndExpired(request);
    } else {
      AcceptOutput(chunk, std::move(output), now);
    }
  }
}

// Before its ends are told, so that a client that has its answer finds it counted.
void Engine::ReportStep(const StepUnderWay& step) {
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
  MutexLock lock(mu_);
  if (step.started_requests > 0 || load_.waiting() > 0) {
    starts_.Record(step.started_requests, whole);
  }
  UpdateLoad();
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
  Settle();
  for (const auto& [id, request] : requests_) {
    End(*request, absl::UnavailableError("the server stopped"), "error", now_());
  }
  Tell();
}

}  // namespace ddl
