#ifndef DDL_SERVER_RPC_MODEL_SERVICE_H_
#define DDL_SERVER_RPC_MODEL_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <atomic>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "ddl/v1/inference.pb.h"
#include "server/rpc/raw_service.h"
#include "server/rpc/rpc_context.h"

namespace ddl {

// Where the server is in its life. Thread-safe.
struct ServerState {
  const absl::Time started = absl::Now();
  std::atomic<bool> ready = false;  // what health says
  std::atomic<bool> draining = false;
  std::atomic<bool> stalled = false;  // a step does not come back; not ready for as long
};

// ddl.v1.ModelService: what is served and how busy it is. Answers from the start, also while
// models load.
class ModelService final : public OneMessageService {
 public:
  ModelService(const RpcContext& rpc, const ServerState& state);

 private:
  v1::ServerInfo Info() const;

  const RpcContext rpc_;
  const ServerState& state_;
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_MODEL_SERVICE_H_
