#ifndef DDL_SERVER_NET_CONNECTION_OPTIONS_H_
#define DDL_SERVER_NET_CONNECTION_OPTIONS_H_

#include <cstdint>

#include "absl/time/time.h"

namespace grpc {
class ServerBuilder;
}

namespace ddl {

// What clients' connections may take. The flags' help texts say what each means.
struct ConnectionOptions {
  int64_t max_connection_memory = int64_t{512} << 20;  // bytes, of all connections together
  int32_t max_concurrent_streams = 1024;
  int32_t max_connections = 1000;
  int32_t max_connection_rate = 50;  // new ones a second from one address; 0: any number
  absl::Duration max_connection_idle = absl::Minutes(5);
  absl::Duration max_connection_age = absl::InfiniteDuration();
  absl::Duration handshake_timeout = absl::Seconds(20);
  absl::Duration min_ping_interval = absl::Seconds(10);
  absl::Duration keepalive_interval = absl::Minutes(2);
  absl::Duration keepalive_timeout = absl::Seconds(20);
};

// Those that gRPC keeps; the others are ConnectionAcceptor's.
void ApplyConnectionOptions(const ConnectionOptions& options, grpc::ServerBuilder* builder);

// Lets the process open a file for each of so many connections, and some more, or says in the log
// that it may not.
void RaiseFileLimit(int max_connections);

}  // namespace ddl

#endif  // DDL_SERVER_NET_CONNECTION_OPTIONS_H_
