#include "server/rpc/call_record.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_details.h"
#include "server/conversion/grpc_status.h"
#include "server/models/served_models.h"

namespace ddl {
namespace {

// What gRPC's clients obey when a retry policy has them call again: milliseconds, as text.
constexpr char kRetryPushback[] = "grpc-retry-pushback-ms";

// gRPC's clients count from the time at which they woke up to read the answer, which on a busy
// machine is some milliseconds before it was sent: they would come too early, and be refused again.
constexpr absl::Duration kPushbackMargin = absl::Milliseconds(20);

std::string Pushback(absl::Duration delay) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t rounded_up =
      absl::ToInt64Milliseconds(absl::Ceil(delay + kPushbackMargin, absl::Milliseconds(1)));
  return absl::StrCat(std::clamp<int64_t>(rounded_up, 0, kMost));
}

}  // namespace

CallRecord::CallRecord(const RpcContext& rpc, Method method, CallMetadata metadata,
                       std::string_view model, grpc::CallbackServerContext* context)
    : rpc_(rpc),
      method_(method),
      metadata_(std::move(metadata)),
      model_([&] {
        const absl::StatusOr<ServedModel*> found = rpc.models.Find(model);
        return found.ok() ? (*found)->name() : std::string(kUnknownModel);
      }()),
      context_(context),
      counted_(rpc.active.Enter()) {
  rpc_.metrics.OnRpcStart(method_, model_);
}

CallRecord::~CallRecord() {
  DDL_CHECK(answered_, "a call ended without an answer");
  if (counted_) rpc_.active.Leave();
}

absl::Status CallRecord::Admit() {
  if (!metadata_.caller.ok()) return metadata_.caller.status();
  return CountRefusal(rpc_.keys.TakeRequest(*metadata_.caller));
}

absl::Status CallRecord::CheckRight(Priority priority) const {
  if (priority != Priority::kHigh || metadata_.caller->high_priority) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("the key '", metadata_.caller->name,
                                                  "' has no right to priority: PRIORITY_HIGH"));
}

absl::Status CallRecord::TakeTokens(int64_t tokens) {
  absl::Status status = CountRefusal(rpc_.keys.TakeTokens(*metadata_.caller, tokens));
  if (status.ok()) taken_tokens_ = tokens;
  return status;
}

void CallRecord::SetOutcome(const RequestUsage& usage, const RequestTimings& timings) {
  usage_ = usage;
  timings_ = timings;
}

void CallRecord::BeginAnswer() {
  if (!begun_) SendIds(metadata_, AnswerPart::kInitial, context_);
  begun_ = true;
}

grpc::Status CallRecord::Answer(const absl::Status& status) {
  DDL_CHECK(!answered_, "a call is answered once");
  answered_ = true;
  if (taken_tokens_ > 0) {
    const int64_t used = usage_.has_value() ? usage_->prompt_tokens + usage_->completion_tokens : 0;
    rpc_.keys.ReturnTokens(*metadata_.caller, taken_tokens_ - used);
  }
  const absl::Duration duration = absl::Now() - start_;
  rpc_.metrics.OnRpcEnd(method_, model_, static_cast<int>(status.code()), duration);
  Log(status, duration);
  const std::optional<absl::Duration> retry_after = DetailsOf(status).retry_after;
  if (retry_after.has_value() && !begun_) {
    SendIds(metadata_, AnswerPart::kTrailing, context_);
    context_->AddTrailingMetadata(kRetryPushback, Pushback(*retry_after));
  } else {
    BeginAnswer();
  }
  return ToGrpcStatus(status);
}

absl::Status CallRecord::CountRefusal(absl::Status status) const {
  if (!status.ok()) rpc_.metrics.OnRejected(model_, RejectReason::kRateLimited);
  return status;
}

void CallRecord::Log(const absl::Status& status, absl::Duration duration) const {
  RequestLogEntry entry;
  entry.request_id = metadata_.request_id;
  entry.trace = metadata_.trace;
  entry.peer = metadata_.peer;
  if (metadata_.caller.ok()) entry.key = metadata_.caller->name;
  entry.method = MethodName(method_);
  entry.model = model_;
  entry.code = StatusCodeName(static_cast<int>(status.code()));
  entry.reason = DetailsOf(status).reason;
  // The messages of other errors may quote the request.
  if (absl::IsInternal(status)) entry.message = std::string(status.message());
  entry.duration = duration;
  entry.usage = usage_;
  entry.timings = timings_;
  rpc_.log.Write(entry);
}

}  // namespace ddl
