#include "server/models/compute_thread.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/check.h"

namespace ddl {
namespace {

class SharedThreadRunner final : public ModelRunner {
 public:
  SharedThreadRunner(ComputeThread* thread, std::unique_ptr<ModelRunner> runner)
      : thread_(*thread), runner_(std::move(runner)), description_(runner_->description()) {
    description_.max_in_flight_steps = 1;
  }

  const ModelDescription& description() const override { return description_; }

  // To begin it on the thread could take as long as another model's step.
  void Begin(absl::Span<const SequenceChunk> chunks) override {
    chunks_.assign(chunks.begin(), chunks.end());
  }
  absl::StatusOr<std::vector<ChunkOutput>> Finish() override {
    std::optional<absl::StatusOr<std::vector<ChunkOutput>>> outputs;
    thread_.Run([&] { outputs = runner_->Forward(chunks_); });
    return *std::move(outputs);
  }

 private:
  ComputeThread& thread_;
  const std::unique_ptr<ModelRunner> runner_;
  ModelDescription description_;
  std::vector<SequenceChunk> chunks_;  // begun
};

}  // namespace

ComputeThread::ComputeThread() : thread_([this] { Loop(); }) {}

ComputeThread::~ComputeThread() {
  {
    const MutexLock lock(mu_);
    DDL_CHECK(tasks_.empty(), "a compute thread ends while it is used");
    stopping_ = true;
  }
  asked_.NotifyOne();
  thread_.join();
}

void ComputeThread::Run(const std::function<void()>& function) {
  Task task = {.function = &function};
  const MutexLock lock(mu_);
  tasks_.push_back(&task);
  asked_.NotifyOne();
  while (!task.done) done_.Wait(mu_);
}

int ComputeThread::num_waiting() const {
  const MutexLock lock(mu_);
  return static_cast<int>(tasks_.size()) - (running_ ? 1 : 0);
}

void ComputeThread::Loop() {
  while (true) {
    Task* task = nullptr;
    {
      const MutexLock lock(mu_);
      while (tasks_.empty() && !stopping_) asked_.Wait(mu_);
      if (tasks_.empty()) return;
      task = tasks_.front();
      running_ = true;
    }
    (*task->function)();
    const MutexLock lock(mu_);
    tasks_.pop_front();
    running_ = false;
    task->done = true;
    done_.NotifyAll();
  }
}

std::unique_ptr<ModelRunner> RunOn(ComputeThread* thread, std::unique_ptr<ModelRunner> runner) {
  return std::make_unique<SharedThreadRunner>(thread, std::move(runner));
}

}  // namespace ddl
