#include "server/engine/engine.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "server/engine/active_request.h"
#include "server/engine/admission.h"
#include "server/engine/engine_core.h"

namespace ddl {
namespace {

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
  if (absl::Status status = CheckOptions(options, model.max_sequences); !status.ok()) {
    return status;
  }
  return std::unique_ptr<Engine>(new Engine(WithinSlots(options, model), std::move(runner),
                                            std::move(tokenizer), observer, std::move(now)));
}

Engine::Engine(const EngineOptions& options, std::unique_ptr<ModelRunner> runner,
               std::shared_ptr<const Tokenizer> tokenizer, EngineObserver* observer,
               std::function<absl::Time()> now)
    : options_(options),
      tokenizer_(std::move(tokenizer)),
      now_(std::move(now)),
      admission_(std::make_unique<Admission>(options_, runner->description(), observer, now_)),
      core_(std::make_unique<EngineCore>(options_, std::move(runner), tokenizer_.get(), observer,
                                         admission_.get(), now_)) {}

Engine::~Engine() { Stop(); }

absl::StatusOr<RequestHandle> Engine::Submit(Request request, std::shared_ptr<RequestSink> sink) {
  std::unique_ptr<ActiveRequest> active =
      MakeActiveRequest(std::move(request), next_id_.fetch_add(1, std::memory_order_relaxed),
                        std::move(sink), options_, model(), tokenizer_.get(), now_());
  const RequestHandle handle = {.id = active->id};
  if (absl::Status status = admission_->Submit(std::move(active)); !status.ok()) return status;
  return handle;
}

void Engine::Cancel(RequestHandle handle) { admission_->Cancel(handle.id); }

void Engine::Resume(RequestHandle handle) { admission_->Resume(handle.id); }

absl::Status Engine::WarmUp() { return core_->WarmUp(); }

void Engine::Start() {
  MutexLock lock(thread_mu_);
  DDL_CHECK(!thread_.joinable(), "the engine was started twice");
  thread_ = std::thread([this] { Run(); });
}

void Engine::Run() {
  // For `top -H` and the like.
  pthread_setname_np(pthread_self(), "ddl-step");
  bool worked = false;
  // No call can change what a turn without work has looked at, so it need not look again.
  while (admission_->WaitForWork(worked, worked ? absl::InfiniteFuture() : core_->NextTimeout())) {
    worked = core_->Step();
  }
}

bool Engine::Step() { return core_->Step(); }

void Engine::Settle() { core_->Settle(); }

void Engine::StopAdmission() { admission_->StopAdmission(); }

bool Engine::WaitUntilIdle(absl::Time deadline) { return admission_->WaitUntilIdle(deadline); }

void Engine::Stop() {
  admission_->Stop();
  MutexLock lock(thread_mu_);
  if (thread_.joinable()) thread_.join();
  // This thread is now the one that steps.
  core_->EndAll(absl::UnavailableError("the server stopped"));
}

EngineLoad Engine::load() const { return admission_->load(); }

absl::Duration Engine::running_step() const { return core_->running_step(); }

const ModelDescription& Engine::model() const { return core_->model(); }

}  // namespace ddl
