#ifndef DDL_SERVER_RPC_RPC_CONTEXT_H_
#define DDL_SERVER_RPC_RPC_CONTEXT_H_

#include <cstdint>

#include "server/access/api_keys.h"
#include "server/models/served_models.h"
#include "server/rpc/active_calls.h"
#include "server/rpc/reply_thread.h"
#include "server/telemetry/metrics.h"
#include "server/telemetry/request_log.h"

namespace ddl {

// What calls need of the server. All of it outlives them.
struct RpcContext {
  ServedModels& models;
  Metrics& metrics;
  ActiveCalls& active;
  ReplyThread& replies;
  ApiKeys& keys;
  RequestLog& log;
  int64_t max_message_bytes;  // of a request
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_RPC_CONTEXT_H_
