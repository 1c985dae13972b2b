#ifndef DDL_SERVER_RPC_CALL_RECORD_H_
#define DDL_SERVER_RPC_CALL_RECORD_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/engine/request.h"
#include "server/rpc/call_metadata.h"
#include "server/rpc/rpc_context.h"
#include "server/telemetry/metrics.h"

namespace ddl {

// The accounting of one call, from its arrival to its destruction, which is after gRPC's last word:
// its key's limits, its metrics and its line in the log. Not thread-safe.
class CallRecord {
 public:
  // `model`: what the client asked for. `context` outlives the answer.
  CallRecord(const RpcContext& rpc, Method method, CallMetadata metadata, std::string_view model,
             grpc::CallbackServerContext* context);
  ~CallRecord();

  CallRecord(const CallRecord&) = delete;
  CallRecord& operator=(const CallRecord&) = delete;

  // What stands against the call, apart from its request: UNAUTHENTICATED, or RESOURCE_EXHAUSTED
  // where its key has made too many. Once, before anything else.
  absl::Status Admit();
  // PERMISSION_DENIED where its key may not ask for this.
  absl::Status CheckRight(Priority priority) const;
  // Takes `tokens` of what its key may use; RESOURCE_EXHAUSTED where it has used them. At most
  // once. What the engine did not use goes back with the answer.
  absl::Status TakeTokens(int64_t tokens);
  // The engine has ended the call's request.
  void SetOutcome(const RequestUsage& usage, const RequestTimings& timings);

  // Before the first part of an answer of several: its initial metadata say the call's ids.
  void BeginAnswer();
  // Counts the answer, once, writes it to the log, and translates it. A refusal that says when to
  // come back says so to gRPC's own retries as well, and has no initial metadata, so that they
  // happen. Call before handing it to gRPC: a client that has its answer finds it in the metrics.
  grpc::Status Answer(const absl::Status& status);

 private:
  absl::Status CountRefusal(absl::Status status) const;
  void Log(const absl::Status& status, absl::Duration duration) const;

  const RpcContext& rpc_;
  const Method method_;
  const CallMetadata metadata_;
  const std::string model_;  // the label
  grpc::CallbackServerContext* const context_;
  const absl::Time start_ = absl::Now();
  const bool counted_;
  bool begun_ = false;
  bool answered_ = false;
  int64_t taken_tokens_ = 0;
  std::optional<RequestUsage> usage_;
  RequestTimings timings_;
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_CALL_RECORD_H_
