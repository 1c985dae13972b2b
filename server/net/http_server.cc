#include "server/net/http_server.h"

#include <CivetServer.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>

#include "absl/status/status.h"

namespace ddl {
namespace {

constexpr char kThreads[] = "4";
constexpr char kRequestTimeoutMilliseconds[] = "10000";

const char* Reason(int code) {
  switch (code) {
    case 200:
      return "OK";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 503:
      return "Service Unavailable";
    default:
      return "";
  }
}

// Connects to "HOST:PORT" and hangs up. Civetweb's thread that listens, when told to end, notices
// at the next connection or after two seconds.
void Knock(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) return;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd >= 0) {
    // That it goes wrong is no harm: then it takes the two seconds.
    (void)connect(fd, found->ai_addr, found->ai_addrlen);
    close(fd);
  }
  freeaddrinfo(found);
}

void Send(mg_connection* connection, const HttpServer::Page& page, bool with_body) {
  mg_printf(connection,
            "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n"
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n",
            page.code, Reason(page.code), page.content_type.c_str(), page.body.size());
  if (with_body) mg_write(connection, page.body.data(), page.body.size());
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const std::string& address, std::map<std::string, Handler> pages)
      : address_(address),
        pages_(std::move(pages)),
        everything_(*this),
        server_({"listening_ports", address, "num_threads", kThreads, "request_timeout_ms",
                 kRequestTimeoutMilliseconds}) {
    server_.addHandler("/", everything_);
  }

  ~Impl() {
    const std::string address =
        address_.substr(0, address_.rfind(':') + 1) + std::to_string(port());
    std::atomic<bool> closed = false;
    std::thread closing([&] {
      server_.close();
      closed = true;
    });
    while (!closed) {
      Knock(address);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    closing.join();
  }

  int port() { return server_.getListeningPorts().front(); }

 private:
  // Civetweb hands a path to the longest prefix that has a handler: this one gets all of them.
  class Everything : public CivetHandler {
   public:
    explicit Everything(const Impl& impl) : impl_(impl) {}
    bool handleGet(CivetServer* /*server*/, mg_connection* connection) override {
      Send(connection, impl_.Find(mg_get_request_info(connection)->local_uri), true);
      return true;
    }
    bool handleHead(CivetServer* /*server*/, mg_connection* connection) override {
      Send(connection, impl_.Find(mg_get_request_info(connection)->local_uri), false);
      return true;
    }
    bool handlePost(CivetServer* server, mg_connection* connection) override {
      return Refuse(server, connection);
    }
    bool handlePut(CivetServer* server, mg_connection* connection) override {
      return Refuse(server, connection);
    }
    bool handleDelete(CivetServer* server, mg_connection* connection) override {
      return Refuse(server, connection);
    }
    bool handleOptions(CivetServer* server, mg_connection* connection) override {
      return Refuse(server, connection);
    }
    bool handlePatch(CivetServer* server, mg_connection* connection) override {
      return Refuse(server, connection);
    }

   private:
    static bool Refuse(CivetServer* /*server*/, mg_connection* connection) {
      Send(connection, {.code = 405, .body = "only GET and HEAD\n"}, true);
      return true;
    }
    const Impl& impl_;
  };

  Page Find(const char* path) const {
    const auto found = pages_.find(path == nullptr ? "" : path);
    if (found != pages_.end()) return found->second();
    std::string body = "no such page; there are:\n";
    for (const auto& [known, handler] : pages_) body += known + "\n";
    return {.code = 404, .body = std::move(body)};
  }

  const std::string address_;
  const std::map<std::string, Handler> pages_;
  Everything everything_;
  CivetServer server_;  // last: its threads use the others
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const std::string& address, std::map<std::string, Handler> pages) {
  try {
    auto impl = std::make_unique<Impl>(address, std::move(pages));
    return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
  } catch (const std::exception&) {
    return absl::UnavailableError("cannot listen on " + address +
                                  ": it is in use, not allowed or not an address of this machine");
  }
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;
int HttpServer::port() const { return impl_->port(); }

}  // namespace ddl
