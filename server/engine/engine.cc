#include "server/engine/engine.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/check.h"
#include "server/engine/status_details.h"
#include "server/engine/warm_up.h"

namespace ddl {
namespace {

constexpr absl::Duration kRateMemory = absl::Seconds(10);
// What a refused client is told to wait: the measured delay of the queue, within these bounds.
constexpr absl::Duration kShortestRetry = absl::Milliseconds(50);
constexpr absl::Duration kLongestRetry = absl::Minutes(1);
constexpr absl::Duration kUnmeasuredDelay = absl::Seconds(1);
constexpr absl::Duration kRetryWhenDraining = absl::Seconds(1);

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
  return status;
}

EngineOptions WithinSlots(EngineOptions options, const ModelDescription& model) {
  options.max_running_sequences = std::min(options.max_running_sequences, model.max_sequences);
  return options;
}

absl::Duration NotNegative(absl::Duration duration) {
  return std::max(duration, absl::ZeroDuration());
}

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
                  .max_running_sequences = options.max_running_sequences},
                 &blocks_),
      starts_(kRateMemory) {
  load_.kv_blocks_free = blocks_.num_free();
}

Engine::~Engine() { Stop(); }

// --- The step ------------------------------------------------------------------------------

bool Engine::Step() {
  const absl::Time begin = now_();
  AcceptSubmissions();
  EndCancelledAndExpired(begin);
  const bool ended = DeliverEnds();

  const absl::Time scheduling = now_();
  const StepPlan plan = scheduler_.Schedule();
  if (plan.chunks.empty()) return ended;
  const absl::Time scheduled = now_();
  MarkStarted(plan, scheduled);

  auto outputs = runner_->Forward(ToChunks(plan));

  Postprocess(plan, std::move(outputs));
  ReportStep(plan, scheduled - scheduling, now_() - begin);
  DeliverEnds();
  return true;
}

void Engine::AcceptSubmissions() {
  std::vector<std::unique_ptr<ActiveRequest>> submitted;
  {
    MutexLock lock(mu_);
    submitted.swap(submitted_);
    cancellations_.swap(cancelled_);
  }
  for (std::unique_ptr<ActiveRequest>& request : submitted) {
    for (const auto& sequence : request->sequences) scheduler_.Add(sequence.get());
    const uint64_t id = request->id;
    requests_.emplace(id, std::move(request));
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
      absl::Status status = WithDetails(
          absl::ResourceExhaustedError(
              absl::StrCat("the request was still queued after its queue_timeout of ",
                           absl::FormatDuration(request->start_by - request->submitted))),
          {.reason = "QUEUE_TIMEOUT", .retry_after = std::max(load().queue_delay, kShortestRetry)});
      End(*request, std::move(status), "deadline", request->start_by);
    }
  }
}

void Engine::MarkStarted(const StepPlan& plan, absl::Time now) {
  for (const Sequence* sequence : plan.preempted) {
    ++RequestOf(*sequence).preemptions;
    observer_->OnPreemption();
  }
  std::vector<ActiveRequest*> just_started;
  {
    MutexLock lock(mu_);
    for (const ScheduledChunk& chunk : plan.chunks) {
      ActiveRequest& request = RequestOf(*chunk.sequence);
      if (request.started.has_value()) continue;
      request.started = now;
      just_started.push_back(&request);
      ++started_in_step_;
      --load_.of(request.task).waiting;
      ++load_.of(request.task).running;
      load_.waiting_tokens -= request.prompt_tokens;
    }
  }
  for (ActiveRequest* request : just_started) request->sink->OnStart({});
}

std::vector<SequenceChunk> Engine::ToChunks(const StepPlan& plan) {
  std::vector<SequenceChunk> chunks;
  chunks.reserve(plan.chunks.size());
  for (const ScheduledChunk& scheduled : plan.chunks) {
    const Sequence& sequence = *scheduled.sequence;
    const ActiveRequest& request = RequestOf(sequence);
    const bool last = scheduled.end == sequence.num_tokens();
    SequenceChunk& chunk = chunks.emplace_back(sequence.ChunkUpTo(scheduled.end));
    if (request.task == Task::kEmbed) {
      chunk.hidden = request.poolers[sequence.rank().index].RowsNeeded(last);
    } else if (last) {
      chunk.sample = request.completion->NextSample();
    }
  }
  return chunks;
}

void Engine::Postprocess(const StepPlan& plan, absl::StatusOr<std::vector<ChunkOutput>> outputs) {
  const absl::Time now = now_();
  DDL_CHECK(!outputs.ok() || outputs->size() == plan.chunks.size(), "one output per chunk");
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    const ScheduledChunk& chunk = plan.chunks[i];
    ActiveRequest& request = RequestOf(*chunk.sequence);
    if (request.has_ended()) continue;  // with another of its inputs, in this very step
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
    CountComputed(request, chunk.sequence->MarkComputed(chunk.end));
    if (now >= request.deadline) {
      EndExpired(request);
    } else if (request.task == Task::kEmbed) {
      AcceptRows(request, chunk, output.hidden, now);
    } else if (output.sampled.has_value()) {
      AcceptToken(request, *chunk.sequence, *std::move(output.sampled), now);
    }
  }
}

void Engine::CountComputed(const ActiveRequest& request, const ComputedPositions& computed) {
  if (computed.prompt > 0) {
    observer_->OnPromptTokens(request.task, PromptSource::kComputed, computed.prompt);
  }
  if (computed.again > 0) observer_->OnWastedTokens("preempt_recompute", computed.again);
}

void Engine::AcceptToken(ActiveRequest& request, Sequence& sequence, SampledToken token,
                         absl::Time now) {
  observer_->OnGeneratedTokens(1);
  if (!request.first_token.has_value()) {
    request.first_token = now;
    observer_->OnTimeToFirstToken(NotNegative(now - request.submitted));
  } else {
    observer_->OnInterTokenLatency(NotNegative(now - request.last_token));
  }
  request.last_token = now;

  sequence.Append(token.id);
  Completion::Progress progress = request.completion->Accept(std::move(token));
  if (!progress.delta.text.empty() || !progress.delta.tokens.empty()) {
    request.sink->OnDelta(std::move(progress.delta));
  }
  if (progress.end.has_value()) {
    const std::string_view reason = NameOf(progress.end->finish_reason);
    End(request, absl::OkStatus(), reason, now);
    request.end->completions.push_back(*std::move(progress.end));
  }
}

void Engine::AcceptRows(ActiveRequest& request, const ScheduledChunk& chunk,
                        absl::Span<const float> rows, absl::Time now) {
  Sequence& sequence = *chunk.sequence;
  const int32_t index = sequence.rank().index;
  Pooler& pooler = request.poolers[index];
  if (chunk.start == 0) pooler.Reset();  // perhaps computed again
  pooler.Add(rows);
  if (sequence.num_remaining() > 0) return;

  scheduler_.Remove(&sequence);
  request.sequences[index].reset();
  request.sink->OnEmbedding({.index = index, .vectors = pooler.Take()});
  if (--request.sequences_left == 0) End(request, absl::OkStatus(), "stop", now);
}

void Engine::EndExpired(ActiveRequest& request) {
  End(request,
      absl::DeadlineExceededError(request.started.has_value()
                                      ? "the deadline passed while the request was running"
                                      : "the deadline passed while the request was queued"),
      "deadline", request.deadline);
}

void Engine::End(ActiveRequest& request, absl::Status status, std::string_view finish_reason,
                 absl::Time noticed) {
  for (const auto& sequence : request.sequences) {
    if (sequence != nullptr) scheduler_.Remove(sequence.get());
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
  if (!status.ok() && generated > 0) observer_->OnWastedTokens(finish_reason, generated);

  RequestEnd& end = request.end.emplace();
  end.status = std::move(status);
  end.usage = {
      .prompt_tokens = request.prompt_tokens, .completion_tokens = generated, .cached_tokens = 0};
  end.timings.queue = finished.queue;
  end.timings.prefill = finished.prefill;
  end.timings.decode = finished.decode;
  if (request.first_token.has_value()) {
    end.timings.time_to_first_token = NotNegative(first_token - request.submitted);
  }
  end.timings.preemptions = request.preemptions;
  ended_.push_back(&request);
}

// Before DeliverEnds, so that a client that has its answer finds it counted.
void Engine::ReportStep(const StepPlan& plan, absl::Duration scheduling, absl::Duration whole) {
  observer_->OnStep({.prefill_tokens = plan.prefill_tokens,
                     .decode_tokens = plan.decode_tokens,
                     .sequences = static_cast<int32_t>(plan.chunks.size()),
                     .duration = NotNegative(whole),
                     .scheduler_duration = NotNegative(scheduling)});
  MutexLock lock(mu_);
  if (started_in_step_ > 0 || load_.waiting() > 0) {
    starts_.Record(started_in_step_, NotNegative(whole));
  }
  started_in_step_ = 0;
  CountBlocks();
  PublishLoad();
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
        --load_.of(request->task).waiting;
        load_.waiting_tokens -= request->prompt_tokens;
      }
    }
    CountBlocks();
    PublishLoad();
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

void Engine::CountBlocks() {
  load_.kv_blocks_free = blocks_.num_free();
  load_.kv_blocks_used = blocks_.num_used();
}

// --- Admission -----------------------------------------------------------------------------

absl::StatusOr<RequestHandle> Engine::Submit(Request request, std::shared_ptr<RequestSink> sink) {
  const absl::Status size = CheckSize(request);
  std::unique_ptr<ActiveRequest> active = Activate(std::move(request), std::move(sink));
  const RequestHandle handle = {.id = active->id};

  MutexLock lock(mu_);
  if (absl::Status status = CheckAdmission(*active, size); !status.ok()) return status;
  ++num_requests_;
  ++load_.of(active->task).waiting;
  load_.waiting_tokens += active->prompt_tokens;
  submitted_.push_back(std::move(active));
  PublishLoad();
  work_.NotifyOne();
  return handle;
}

std::unique_ptr<ActiveRequest> Engine::Activate(Request request,
                                                std::shared_ptr<RequestSink> sink) {
  auto active = std::make_unique<ActiveRequest>();
  active->id = next_id_.fetch_add(1, std::memory_order_relaxed);
  active->submitted = now_();
  active->start_by = active->submitted + request.queue_timeout;
  active->deadline = request.deadline;
  active->sink = std::move(sink);

  const auto add_sequence = [&](std::vector<TokenId> tokens, bool generates) {
    DDL_CHECK(
        static_cast<int64_t>(tokens.size()) + (generates ? 1 : 0) <= options_.max_context_length,
        "the service checks the length of every input");
    const SequenceRank rank = {
        .priority = request.priority, .request_id = active->id, .index = active->sequences_left++};
    active->prompt_tokens += static_cast<int64_t>(tokens.size());
    active->sequences.push_back(std::make_unique<Sequence>(rank, std::move(tokens), generates));
  };
  if (auto* generate = std::get_if<GenerateParams>(&request.params)) {
    active->task = Task::kGenerate;
    active->completion.emplace(*generate,
                               Completion::Limits{.max_context_length = options_.max_context_length,
                                                  .vocab_size = VocabSize()},
                               tokenizer_.get());
    add_sequence(std::move(generate->prompt), /*generates=*/true);
  } else {
    auto& embed = std::get<EmbedParams>(request.params);
    active->task = Task::kEmbed;
    const PoolingParams pooling = {
        .pooling = embed.pooling, .normalize = embed.normalize, .dimensions = embed.dimensions};
    active->poolers.assign(embed.inputs.size(), Pooler(pooling, model().hidden_size));
    for (std::vector<TokenId>& input : embed.inputs) {
      add_sequence(std::move(input), /*generates=*/false);
    }
  }
  DDL_CHECK(active->sequences_left > 0, "the service refuses an Embed of nothing");
  return active;
}

TokenId Engine::VocabSize() const {
  const auto rows = static_cast<TokenId>(model().vocab_size);
  return tokenizer_ != nullptr ? std::min(rows, tokenizer_->vocab_size()) : rows;
}

absl::Status Engine::CheckSize(const Request& request) const {
  int64_t needed = 0;  // positions of the longest sequence
  if (const auto* generate = std::get_if<GenerateParams>(&request.params)) {
    // The last token is drawn, but never computed.
    needed = std::min<int64_t>(
                 static_cast<int64_t>(generate->prompt.size()) + generate->stopping.max_tokens,
                 options_.max_context_length) -
             1;
  } else {
    for (const auto& input : std::get<EmbedParams>(request.params).inputs) {
      needed = std::max(needed, static_cast<int64_t>(input.size()));
    }
  }
  const int64_t available = static_cast<int64_t>(model().kv_num_blocks) * model().kv_block_size;
  if (needed <= available) return absl::OkStatus();
  return WithDetails(absl::FailedPreconditionError(
                         absl::StrCat("the request can never fit in the KV cache: it needs ",
                                      needed, " tokens, the cache has ", available)),
                     {.reason = "TOO_LARGE"});
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
  return absl::OkStatus();
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

void Engine::Cancel(RequestHandle handle) {
  const absl::Time now = now_();
  MutexLock lock(mu_);
  if (num_requests_ > 0) cancelled_.push_back({.id = handle.id, .asked = now});
}

EngineLoad Engine::load() const {
  MutexLock lock(mu_);
  return load_;
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
  while (WaitForWork()) Step();
}

bool Engine::WaitForWork() {
  MutexLock lock(mu_);
  while (num_requests_ == 0 && !stopping_) work_.Wait(mu_);
  return !stopping_;
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
  AcceptSubmissions();
  for (const auto& [id, request] : requests_) {
    End(*request, absl::UnavailableError("the server stopped"), "error", now_());
  }
  DeliverEnds();
}

}  // namespace ddl
