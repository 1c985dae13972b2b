#include "server/connection_acceptor.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace ddl {
namespace {

// While all may stand that may, how often to look which of them do: a look costs a system call for
// each, and whoever comes in between is refused.
constexpr absl::Duration kLookInterval = absl::Milliseconds(10);
// With no file descriptor left, accepting fails at once for as long as somebody waits.
constexpr int kPauseMilliseconds = 100;

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

int PortOf(int listener) {
  sockaddr_storage address = {};
  socklen_t length = sizeof address;
  if (getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

void SetPort(sockaddr* address, int port) {
  const in_port_t number = htons(static_cast<uint16_t>(port));
  if (address->sa_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = number;
  } else {
    reinterpret_cast<sockaddr_in*>(address)->sin_port = number;
  }
}

// A listening socket; `both_versions`: an IPv6 one that takes IPv4 as well.
absl::StatusOr<int> ListenOn(const sockaddr* address, socklen_t length, bool both_versions) {
  const int listener =
      socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
  if (listener < 0) return SystemError("socket");
  const int on = 1, only_version6 = both_versions ? 0 : 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  // Connections inherit it. Without it small messages wait for acknowledgements.
  setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (address->sa_family == AF_INET6) {
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &only_version6, sizeof only_version6);
  }
  if (bind(listener, address, length) != 0 || listen(listener, SOMAXCONN) != 0) {
    absl::Status status = SystemError("bind");
    close(listener);
    return status;
  }
  return listener;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> ConnectionAcceptor::Listen(
    const std::string& address, int max_connections) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  const std::string port = address.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  std::unique_ptr<ConnectionAcceptor> acceptor(new ConnectionAcceptor(max_connections));
  acceptor->stop_event_ = eventfd(0, EFD_CLOEXEC);
  if (acceptor->stop_event_ < 0) return SystemError("eventfd");

  if (host == "0.0.0.0" || host == "::") {
    sockaddr_in6 everywhere = {};
    everywhere.sin6_family = AF_INET6;
    everywhere.sin6_addr = in6addr_any;
    SetPort(reinterpret_cast<sockaddr*>(&everywhere), std::atoi(port.c_str()));
    const absl::StatusOr<int> listener =
        ListenOn(reinterpret_cast<sockaddr*>(&everywhere), sizeof everywhere, true);
    if (listener.ok()) {
      acceptor->listeners_ = {*listener};
      acceptor->port_ = PortOf(*listener);
      return acceptor;
    }
    // A machine without IPv6, or a port that is taken: then the same follows for IPv4.
  }
  addrinfo hints = {};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return absl::UnavailableError(absl::StrCat(host, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    // With port 0 the first chooses, for all of them.
    if (acceptor->port_ != 0) SetPort(each->ai_addr, acceptor->port_);
    const absl::StatusOr<int> listener = ListenOn(each->ai_addr, each->ai_addrlen, false);
    if (!listener.ok()) return listener.status();
    acceptor->listeners_.push_back(*listener);
    acceptor->port_ = PortOf(*listener);
  }
  return acceptor;
}

ConnectionAcceptor::~ConnectionAcceptor() {
  Stop();
  if (stop_event_ >= 0) close(stop_event_);
}

void ConnectionAcceptor::Start(Handler handler, std::function<void()> on_refused) {
  handler_ = std::move(handler);
  on_refused_ = std::move(on_refused);
  thread_ = std::thread([this] { Accept(); });
}

void ConnectionAcceptor::Stop() {
  if (thread_.joinable()) {
    eventfd_write(stop_event_, 1);
    thread_.join();
  }
  for (const int listener : listeners_) close(listener);
  listeners_.clear();
}

int64_t ConnectionAcceptor::NumConnections() {
  const MutexLock lock(mu_);
  ForgetClosed();
  return static_cast<int64_t>(connections_.size());
}

void ConnectionAcceptor::Accept() {
  std::vector<pollfd> events = {{.fd = stop_event_, .events = POLLIN, .revents = 0}};
  for (const int listener : listeners_) {
    events.push_back({.fd = listener, .events = POLLIN, .revents = 0});
  }
  bool pause = false;
  while (true) {
    poll(events.data(), pause ? 1 : events.size(), pause ? kPauseMilliseconds : -1);
    if (events[0].revents != 0) return;
    pause = false;
    for (size_t i = 1; i < events.size(); ++i) {
      if (!AcceptAll(events[i].fd)) pause = true;
    }
  }
}

bool ConnectionAcceptor::AcceptAll(int listener) {
  while (true) {
    const int connection = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (connection < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) return false;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return true;
      continue;  // that one is gone already; others may wait
    }
    if (Admit(connection)) {
      handler_(listener, connection);
    } else {
      close(connection);
      on_refused_();
    }
  }
}

bool ConnectionAcceptor::Admit(int connection) {
  struct stat state = {};
  if (fstat(connection, &state) != 0) return false;
  const MutexLock lock(mu_);
  const absl::Time now = absl::Now();
  const auto most = static_cast<size_t>(max_connections_);
  if (connections_.size() >= most && now >= next_look_) {
    ForgetClosed();
    next_look_ = now + kLookInterval;
  }
  if (connections_.size() >= most) return false;
  connections_.push_back({.descriptor = connection, .inode = state.st_ino});
  return true;
}

void ConnectionAcceptor::ForgetClosed() {
  const auto closed = [](const Connection& connection) {
    struct stat state = {};
    return fstat(connection.descriptor, &state) != 0 || !S_ISSOCK(state.st_mode) ||
           state.st_ino != connection.inode;
  };
  connections_.erase(std::remove_if(connections_.begin(), connections_.end(), closed),
                     connections_.end());
}

}  // namespace ddl
