#ifndef DDL_SERVER_MODELS_COMPUTE_THREAD_H_
#define DDL_SERVER_MODELS_COMPUTE_THREAD_H_

#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "model/model_runner.h"

namespace ddl {

// One thread that computes the steps of several models, one step at a time and in the order in
// which they were asked for. Each engine would otherwise compute on its own step thread, with a
// team of helper threads of its own, and teams that share cores slow each other down. Thread-safe.
class ComputeThread {
 public:
  ComputeThread();
  // No Run may be going on or follow.
  ~ComputeThread();

  ComputeThread(const ComputeThread&) = delete;
  ComputeThread& operator=(const ComputeThread&) = delete;

  // Runs `function` on the thread, after what was asked for before, and returns when it is done.
  void Run(const std::function<void()>& function);
  // Runs that wait for another to end.
  int num_waiting() const;

 private:
  struct Task {
    const std::function<void()>* function = nullptr;
    bool done = false;
  };

  void Loop();

  mutable Mutex mu_;
  CondVar asked_;
  CondVar done_;
  std::deque<Task*> tasks_ ABSL_GUARDED_BY(mu_);  // each lives until its Run returns
  bool running_ ABSL_GUARDED_BY(mu_) = false;     // the front one
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// `runner`, with its steps on `thread`, which must outlive it: one at a time, each in one go, when
// it is finished.
std::unique_ptr<ModelRunner> RunOn(ComputeThread* thread, std::unique_ptr<ModelRunner> runner);

}  // namespace ddl

#endif  // DDL_SERVER_MODELS_COMPUTE_THREAD_H_
