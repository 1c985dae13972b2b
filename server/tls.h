#ifndef DDL_SERVER_TLS_H_
#define DDL_SERVER_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ddl {

// PEM files. Their content may be replaced at any time (by renaming, as Kubernetes does): new
// connections then use the new one, those that stand go on.
struct TlsFiles {
  std::string certificate;  // the server's chain, its own first
  std::string private_key;  // of the first certificate, without a passphrase
  std::string client_ca;    // authorities of client certificates; empty: clients need none

  bool empty() const { return certificate.empty() && private_key.empty() && client_ca.empty(); }
};

// What the server listens with: no TLS for empty `files`, otherwise TLS 1.2 or later, and with
// client_ca mutual TLS. The files are looked at again every `reload_interval`, at least a second.
// INVALID_ARGUMENT, naming the flag and file, for a file that is missing, cannot be read, is no
// PEM, has expired, or does not belong to the other.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsFiles& files, absl::Duration reload_interval);

}  // namespace ddl

#endif  // DDL_SERVER_TLS_H_
