#ifndef DDL_SERVER_SHUTDOWN_DEADLINE_H_
#define DDL_SERVER_SHUTDOWN_DEADLINE_H_

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace ddl {

// While it lives, something has to come to its end within `grace`; otherwise `expired` is called,
// once, on a thread of its own. That thread is waited for.
class ShutdownDeadline {
 public:
  ShutdownDeadline(absl::Duration grace, std::function<void()> expired);
  ~ShutdownDeadline();

  ShutdownDeadline(const ShutdownDeadline&) = delete;
  ShutdownDeadline& operator=(const ShutdownDeadline&) = delete;

 private:
  void Wait(absl::Time deadline, const std::function<void()>& expired);

  Mutex mu_;
  CondVar changed_;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace ddl

#endif  // DDL_SERVER_SHUTDOWN_DEADLINE_H_
