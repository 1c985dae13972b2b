#ifndef DDL_SERVER_RPC_INFERENCE_SERVICE_H_
#define DDL_SERVER_RPC_INFERENCE_SERVICE_H_

#include "server/rpc/raw_service.h"
#include "server/rpc/rpc_context.h"

namespace ddl {

// ddl.v1.InferenceService. Calls are parsed, checked and tokenized on gRPC's threads; the engine
// brings their results to reactors, which answer from the reply thread.
class InferenceService final : public OneMessageService {
 public:
  explicit InferenceService(const RpcContext& rpc);

 private:
  const RpcContext rpc_;
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_INFERENCE_SERVICE_H_
