#ifndef DDL_SERVER_RPC_REPLY_THREAD_H_
#define DDL_SERVER_RPC_REPLY_THREAD_H_

#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"

namespace ddl {

// Runs functions one after another on a thread of its own. The engine's step thread leaves here
// what it takes to answer clients (building messages, handing them to gRPC, whose system calls
// run on the caller's thread), and goes on with the next step.
class ReplyThread {
 public:
  ReplyThread();
  // Runs what has been posted, then ends.
  ~ReplyThread();

  ReplyThread(const ReplyThread&) = delete;
  ReplyThread& operator=(const ReplyThread&) = delete;

  // Any thread. To be run in order, once woken.
  void Post(std::function<void()> function);
  // Any thread. What has been posted is run. A thread that posts for many clients wakes this one
  // once, for where all processors compute it has to give way each time.
  void Wake();

 private:
  void Run();

  Mutex mu_;
  CondVar changed_;
  std::vector<std::function<void()>> posted_ ABSL_GUARDED_BY(mu_);
  bool is_woken_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_REPLY_THREAD_H_
