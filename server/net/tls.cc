#include "server/net/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ddl {
namespace {

template <auto kFree>
struct Freer {
  template <typename T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};
using Bio = std::unique_ptr<BIO, Freer<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Freer<X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;

absl::Status Wrong(absl::string_view flag, const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", path, ": ", what));
}

// The first certificate of a file that may serve now.
absl::StatusOr<Certificate> ReadCertificate(absl::string_view flag, const std::string& path) {
  const Bio file(BIO_new_file(path.c_str(), "r"));
  if (file == nullptr) return Wrong(flag, path, "cannot be read");
  Certificate certificate(PEM_read_bio_X509(file.get(), nullptr, nullptr, nullptr));
  if (certificate == nullptr) return Wrong(flag, path, "holds no certificate in PEM");
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0) {
    return Wrong(flag, path, "the certificate has expired");
  }
  if (X509_cmp_current_time(X509_get0_notBefore(certificate.get())) > 0) {
    return Wrong(flag, path, "the certificate is not valid yet");
  }
  return certificate;
}

// Answers "no passphrase" instead of asking the terminal.
int NoPassphrase(char* /*buffer*/, int /*size*/, int /*writing*/, void* /*context*/) { return -1; }

absl::StatusOr<PrivateKey> ReadPrivateKey(absl::string_view flag, const std::string& path) {
  const Bio file(BIO_new_file(path.c_str(), "r"));
  if (file == nullptr) return Wrong(flag, path, "cannot be read");
  PrivateKey key(PEM_read_bio_PrivateKey(file.get(), nullptr, NoPassphrase, nullptr));
  if (key == nullptr) return Wrong(flag, path, "holds no private key in PEM without a passphrase");
  return key;
}

absl::Status CheckFiles(const TlsFiles& files) {
  constexpr absl::string_view kCertificate = "tls_certificate", kKey = "tls_private_key";
  if (files.certificate.empty() || files.private_key.empty()) {
    return absl::InvalidArgumentError(
        "TLS needs both --tls_certificate and --tls_private_key; --tls_client_ca comes on top");
  }
  const absl::StatusOr<Certificate> certificate = ReadCertificate(kCertificate, files.certificate);
  if (!certificate.ok()) return certificate.status();
  const absl::StatusOr<PrivateKey> key = ReadPrivateKey(kKey, files.private_key);
  if (!key.ok()) return key.status();
  if (X509_check_private_key(certificate->get(), key->get()) != 1) {
    return Wrong(kKey, files.private_key,
                 absl::StrCat("is not the key of the certificate in ", files.certificate));
  }
  if (files.client_ca.empty()) return absl::OkStatus();
  return ReadCertificate("tls_client_ca", files.client_ca).status();
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsFiles& files, absl::Duration reload_interval) {
  if (files.empty()) return grpc::InsecureServerCredentials();
  if (absl::Status status = CheckFiles(files); !status.ok()) return status;
  const auto seconds =
      static_cast<unsigned int>(std::max<int64_t>(1, absl::ToInt64Seconds(reload_interval)));
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          files.private_key, files.certificate, files.client_ca, seconds));
  options.watch_identity_key_cert_pairs();
  if (files.client_ca.empty()) {
    options.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  } else {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

}  // namespace ddl
