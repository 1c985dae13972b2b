#include "server/rpc.h"

#include "server/engine/status_details.h"

namespace ddl {

bool ActiveCalls::Enter() {
  const MutexLock lock(mu_);
  if (counting_) ++count_;
  return counting_;
}

void ActiveCalls::Leave() {
  const MutexLock lock(mu_);
  if (--count_ == 0) changed_.NotifyAll();
}

void ActiveCalls::StopCounting() {
  const MutexLock lock(mu_);
  counting_ = false;
}

bool ActiveCalls::WaitUntilNone(absl::Time deadline) {
  const MutexLock lock(mu_);
  while (count_ > 0 && !interrupted_ && absl::Now() < deadline) {
    changed_.WaitUntil(mu_, absl::ToChronoTime(deadline));
  }
  return count_ == 0;
}

void ActiveCalls::Interrupt() {
  const MutexLock lock(mu_);
  interrupted_ = true;
  changed_.NotifyAll();
}

RpcRecord::RpcRecord(const RpcSurroundings& surroundings, Method method, std::string_view model)
    : surroundings_(surroundings),
      method_(method),
      model_([&] {
        const absl::StatusOr<ServedModel*> found = surroundings.models.Find(model);
        return found.ok() ? (*found)->name() : std::string(kUnknownModel);
      }()),
      counted_(surroundings.active.Enter()) {
  surroundings_.metrics.OnRpcStart(method_, model_);
}

RpcRecord::~RpcRecord() {
  DDL_CHECK(answered_, "a call ended without an answer");
  if (counted_) surroundings_.active.Leave();
}

grpc::Status RpcRecord::Answer(const absl::Status& status) {
  DDL_CHECK(!answered_, "a call is answered once");
  answered_ = true;
  surroundings_.metrics.OnRpcEnd(method_, model_, static_cast<int>(status.code()),
                                 absl::Now() - start_);
  return ToGrpcStatus(status);
}

}  // namespace ddl
