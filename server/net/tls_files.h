#ifndef DDL_SERVER_NET_TLS_FILES_H_
#define DDL_SERVER_NET_TLS_FILES_H_

#include <string>

namespace ddl {

// PEM files. Their content may be replaced at any time (by renaming, as Kubernetes does): new
// connections then use the new one, those that stand go on.
struct TlsFiles {
  std::string certificate;  // the server's chain, its own first
  std::string private_key;  // of the first certificate, without a passphrase
  std::string client_ca;    // authorities of client certificates; empty: clients need none

  bool empty() const { return certificate.empty() && private_key.empty() && client_ca.empty(); }
};

}  // namespace ddl

#endif  // DDL_SERVER_NET_TLS_FILES_H_
