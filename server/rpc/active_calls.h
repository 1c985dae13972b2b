#ifndef DDL_SERVER_RPC_ACTIVE_CALLS_H_
#define DDL_SERVER_RPC_ACTIVE_CALLS_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace ddl {

// Counts calls that gRPC is not done with, so that a stopping server can wait for their answers
// to leave. Health checks and reflection are not counted. Thread-safe.
class ActiveCalls {
 public:
  // False when it no longer counts; then no Leave follows.
  bool Enter();
  void Leave();
  // Calls that arrive from now on are not counted.
  void StopCounting();
  // Waits until no counted call is left, or until `deadline`, or until Interrupt. True when none
  // is left.
  bool WaitUntilNone(absl::Time deadline);
  void Interrupt();

 private:
  Mutex mu_;
  CondVar changed_;
  bool counting_ ABSL_GUARDED_BY(mu_) = true;
  bool interrupted_ ABSL_GUARDED_BY(mu_) = false;
  int64_t count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_ACTIVE_CALLS_H_
