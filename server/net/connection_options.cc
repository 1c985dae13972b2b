#include "server/net/connection_options.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>

namespace ddl {
namespace {

// gRPC's arguments are int; INT_MAX milliseconds are never.
int Milliseconds(absl::Duration duration) {
  return static_cast<int>(
      std::min<int64_t>(absl::ToInt64Milliseconds(duration), std::numeric_limits<int>::max()));
}

}  // namespace

void ApplyConnectionOptions(const ConnectionOptions& options, grpc::ServerBuilder* builder) {
  // gRPC reads a message to its end, however long its sender says it is, before it finds it too
  // long, and then reports that to nobody here. So it has no bound, and ParseRequest has.
  builder->SetMaxReceiveMessageSize(-1);
  // A few bytes can be unpacked to any number, for which there would be no bound.
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  // Of what it has read and no call has taken. Past this it drops the streams that hold most.
  grpc::ResourceQuota quota("connections");
  quota.Resize(static_cast<size_t>(options.max_connection_memory));
  builder->SetResourceQuota(quota);
  const std::pair<const char*, int> arguments[] = {
      {GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams},
      {GRPC_ARG_MAX_CONNECTION_IDLE_MS, Milliseconds(options.max_connection_idle)},
      {GRPC_ARG_MAX_CONNECTION_AGE_MS, Milliseconds(options.max_connection_age)},
      {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, Milliseconds(options.handshake_timeout)},
      {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
       Milliseconds(options.min_ping_interval)},
      {GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_interval)},
      {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(options.keepalive_timeout)},
      // Both ways also while no call runs: otherwise the least interval would be two hours then.
      {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
  };
  for (const auto& [name, value] : arguments) builder->AddChannelArgument(name, value);
}

void RaiseFileLimit(int max_connections) {
  constexpr rlim_t kOwnFiles = 256;
  const rlim_t wanted = static_cast<rlim_t>(max_connections) + kOwnFiles;
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min(wanted, limit.rlim_max);
  if (setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == wanted) return;
  spdlog::warn("--max_connections={} is more than the {} files that may be open allow",
               max_connections, limit.rlim_cur);
}

}  // namespace ddl
