#ifndef DDL_SERVER_NET_HTTP_SERVER_H_
#define DDL_SERVER_NET_HTTP_SERVER_H_

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace ddl {

// Answers GET and HEAD for a fixed set of paths, each on one of a few threads of its own. Other
// paths are 404, other methods 405. No TLS and no keys: it is for an address that only the
// cluster's own probes and Prometheus reach.
class HttpServer {
 public:
  struct Page {
    int code = 200;
    std::string content_type = "text/plain; charset=utf-8";
    std::string body;
  };
  using Handler = std::function<Page()>;  // called from several threads

  // Serves `pages`, by path ("/metrics"), on "HOST:PORT" until destruction; port 0 picks a free
  // one. UNAVAILABLE when the address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& address,
                                                           std::map<std::string, Handler> pages);
  ~HttpServer();  // running answers are finished

  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ddl

#endif  // DDL_SERVER_NET_HTTP_SERVER_H_
