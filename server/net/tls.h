#ifndef DDL_SERVER_NET_TLS_H_
#define DDL_SERVER_NET_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/net/tls_files.h"

namespace ddl {

// What the server listens with: no TLS for empty `files`, otherwise TLS 1.2 or later, and with
// client_ca mutual TLS. The files are looked at again every `reload_interval`, at least a second.
// INVALID_ARGUMENT, naming the flag and file, for a file that is missing, cannot be read, is no
// PEM, has expired, or does not belong to the other.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsFiles& files, absl::Duration reload_interval);

}  // namespace ddl

#endif  // DDL_SERVER_NET_TLS_H_
