#include "server/rpc/rpc.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/status_details.h"

namespace ddl {
namespace {

// What gRPC's clients obey when a retry policy has them call again: milliseconds, as text.
constexpr char kRetryPushback[] = "grpc-retry-pushback-ms";

std::string Pushback(absl::Duration delay) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t rounded_up = absl::ToInt64Milliseconds(absl::Ceil(delay, absl::Milliseconds(1)));
  return absl::StrCat(std::clamp<int64_t>(rounded_up, 0, kMost));
}

}  // namespace

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

RpcRecord::RpcRecord(const RpcSurroundings& surroundings, Method method, CallOrigin origin,
                     std::string_view model, grpc::CallbackServerContext* context)
    : surroundings_(surroundings),
      method_(method),
      origin_(std::move(origin)),
      model_([&] {
        const absl::StatusOr<ServedModel*> found = surroundings.models.Find(model);
        return found.ok() ? (*found)->name() : std::string(kUnknownModel);
      }()),
      context_(context),
      counted_(surroundings.active.Enter()) {
  surroundings_.metrics.OnRpcStart(method_, model_);
}

RpcRecord::~RpcRecord() {
  DDL_CHECK(answered_, "a call ended without an answer");
  if (counted_) surroundings_.active.Leave();
}

absl::Status RpcRecord::Admit() {
  if (!origin_.caller.ok()) return origin_.caller.status();
  return CountRefusal(surroundings_.keys.TakeRequest(*origin_.caller));
}

absl::Status RpcRecord::CheckRight(Priority priority) const {
  if (priority != Priority::kHigh || origin_.caller->high_priority) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("the key '", origin_.caller->name, "' has no right to priority: PRIORITY_HIGH"));
}

absl::Status RpcRecord::TakeTokens(int64_t tokens) {
  absl::Status status = CountRefusal(surroundings_.keys.TakeTokens(*origin_.caller, tokens));
  if (status.ok()) taken_tokens_ = tokens;
  return status;
}

void RpcRecord::SetOutcome(const RequestUsage& usage, const RequestTimings& timings) {
  usage_ = usage;
  timings_ = timings;
}

void RpcRecord::BeginAnswer() {
  if (!begun_) SendIds(origin_, AnswerPart::kInitial, context_);
  begun_ = true;
}

grpc::Status RpcRecord::Answer(const absl::Status& status) {
  DDL_CHECK(!answered_, "a call is answered once");
  answered_ = true;
  if (taken_tokens_ > 0) {
    const int64_t used = usage_.has_value() ? usage_->prompt_tokens + usage_->completion_tokens : 0;
    surroundings_.keys.ReturnTokens(*origin_.caller, taken_tokens_ - used);
  }
  const absl::Duration duration = absl::Now() - start_;
  surroundings_.metrics.OnRpcEnd(method_, model_, static_cast<int>(status.code()), duration);
  Log(status, duration);
  const std::optional<absl::Duration> retry_after = DetailsOf(status).retry_after;
  if (retry_after.has_value() && !begun_) {
    SendIds(origin_, AnswerPart::kTrailing, context_);
    context_->AddTrailingMetadata(kRetryPushback, Pushback(*retry_after));
  } else {
    BeginAnswer();
  }
  return ToGrpcStatus(status);
}

absl::Status RpcRecord::CountRefusal(absl::Status status) const {
  if (!status.ok()) surroundings_.metrics.OnRejected(model_, "rate_limited");
  return status;
}

void RpcRecord::Log(const absl::Status& status, absl::Duration duration) const {
  RequestLogEntry entry;
  entry.request_id = origin_.request_id;
  entry.trace = origin_.trace;
  entry.peer = origin_.peer;
  if (origin_.caller.ok()) entry.key = origin_.caller->name;
  entry.method = MethodName(method_);
  entry.model = model_;
  entry.code = StatusCodeName(static_cast<int>(status.code()));
  entry.reason = DetailsOf(status).reason;
  // The messages of other errors may quote the request.
  if (absl::IsInternal(status)) entry.message = std::string(status.message());
  entry.duration = duration;
  entry.usage = usage_;
  entry.timings = timings_;
  surroundings_.log.Write(entry);
}

}  // namespace ddl
