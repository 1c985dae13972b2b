#include "server/rpc/engine_call.h"

#include "absl/status/statusor.h"
#include "absl/time/clock.h"

namespace ddl {
namespace {

// A client's own deadline ends a call with a cancellation that reaches us a little before the
// deadline that it told us: that one is rounded up (to 10 ms for timeouts of seconds) and counts
// from the call's arrival. This close to the deadline, a cancellation is left to the deadline.
constexpr absl::Duration kDeadlineSlack = absl::Milliseconds(20);

}  // namespace

void EngineCall::Release() { const std::shared_ptr<EngineCall> self = std::move(self_); }

absl::Status EngineCall::Submit(Engine& engine, const Request& request) {
  const MutexLock lock(mu_);
  if (cancelled_) return absl::CancelledError("cancelled before it was submitted");
  engine_ = &engine;
  deadline_ = request.deadline;
  const absl::StatusOr<RequestHandle> handle = engine.Submit(request, shared_from_this());
  if (handle.ok()) handle_ = *handle;
  return handle.status();
}

void EngineCall::CancelInEngine() {
  const MutexLock lock(mu_);
  cancelled_ = true;
  if (handle_.has_value() && deadline_ - absl::Now() > kDeadlineSlack) engine_->Cancel(*handle_);
}

void EngineCall::ResumeInEngine() {
  const MutexLock lock(mu_);
  if (handle_.has_value()) engine_->Resume(*handle_);
}

}  // namespace ddl
