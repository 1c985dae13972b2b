#include "server/net/connection_acceptor.h"

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
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ddl {
namespace {

// While all may stand that may, how often to look which of them do: a look costs a system call for
// each, and whoever comes in between is refused.
constexpr absl::Duration kLookInterval = absl::Milliseconds(10);
// With no file descriptor left, accepting fails at once for as long as somebody waits.
constexpr int kPauseMilliseconds = 100;
// Closing connections takes processor time too. After so many that came too fast, whoever waits to
// be accepted waits a little longer, and once many do, the system makes new ones wait as well.
constexpr int kRefusalsBeforeBreath = 10;
constexpr int kBreathMilliseconds = 10;
// Clients of gRPC give a connection 20 seconds, its handshake included.
constexpr absl::Duration kLongestDelay = absl::Seconds(10);

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

// The bytes that tell one peer from another.
std::string PeerOf(const sockaddr_storage& address) {
  constexpr size_t kSite = 8, kMappedPrefix = 12;
  const auto bytes = [](const auto& member, size_t from, size_t to) {
    return std::string(reinterpret_cast<const char*>(&member) + from,
                       reinterpret_cast<const char*>(&member) + to);
  };
  if (address.ss_family != AF_INET6) {
    const in_addr& v4 = reinterpret_cast<const sockaddr_in&>(address).sin_addr;
    return bytes(v4, 0, sizeof v4);
  }
  const in6_addr& v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  return IN6_IS_ADDR_V4MAPPED(&v6) ? bytes(v6, kMappedPrefix, sizeof v6) : bytes(v6, 0, kSite);
}

// Whatever it may have sent before: gRPC would answer all of it.
bool ClientIsGone(int connection) {
  pollfd state = {.fd = connection, .events = POLLRDHUP, .revents = 0};
  return poll(&state, 1, 0) > 0;
}

}  // namespace

ConnectionAcceptor::ConnectionAcceptor(const ConnectionLimits& limits,
                                       std::function<absl::Time()> now)
    : max_connections_(limits.max_connections),
      now_(std::move(now)),
      rate_(limits.per_second, kLongestDelay) {}

absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> ConnectionAcceptor::Listen(
    const std::string& address, const ConnectionLimits& limits, std::function<absl::Time()> now) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  const std::string port = address.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  std::unique_ptr<ConnectionAcceptor> acceptor(new ConnectionAcceptor(limits, std::move(now)));
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

void ConnectionAcceptor::Start(Events events) {
  events_ = std::move(events);
  thread_ = std::thread([this] { Accept(); });
}

void ConnectionAcceptor::Stop() {
  if (thread_.joinable()) {
    eventfd_write(stop_event_, 1);
    thread_.join();
  }
  for (const int listener : listeners_) close(listener);
  listeners_.clear();
  for (const auto& [turn, delayed] : delayed_) close(delayed.descriptor);
  delayed_.clear();
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
  int pause = 0;  // milliseconds
  while (true) {
    poll(events.data(), pause > 0 ? 1 : events.size(),
         pause > 0 ? pause : MillisecondsToNextTurn());
    if (events[0].revents != 0) return;
    pause = 0;
    HandOnDelayed();
    for (size_t i = 1; i < events.size(); ++i) {
      pause = std::max(pause, AcceptAll(events[i].fd));
    }
  }
}

int ConnectionAcceptor::AcceptAll(int listener) {
  for (int too_fast = 0; too_fast < kRefusalsBeforeBreath;) {
    sockaddr_storage address = {};
    socklen_t length = sizeof address;
    const int connection = accept4(listener, reinterpret_cast<sockaddr*>(&address), &length,
                                   SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (connection < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        return kPauseMilliseconds;
      }
      if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
      continue;  // that one is gone already; others may wait
    }
    if (Sort(listener, connection, PeerOf(address)) == ConnectionRefusal::kTooFast) ++too_fast;
  }
  return kBreathMilliseconds;
}

std::optional<ConnectionRefusal> ConnectionAcceptor::Sort(int listener, int connection,
                                                          const std::string& address) {
  const absl::Time now = now_();
  const std::optional<absl::Time> turn = rate_.Turn(address, now);
  if (!turn.has_value() || !Admit(connection)) {
    const ConnectionRefusal refusal =
        turn.has_value() ? ConnectionRefusal::kTooMany : ConnectionRefusal::kTooFast;
    close(connection);
    events_.on_refused(refusal);
    return refusal;
  }
  if (*turn > now) {
    delayed_.insert({*turn, {.listener = listener, .descriptor = connection}});
    events_.on_delayed();
  } else {
    events_.on_connection(listener, connection);
  }
  return std::nullopt;
}

void ConnectionAcceptor::HandOnDelayed() {
  const absl::Time now = now_();
  while (!delayed_.empty() && delayed_.begin()->first <= now) {
    const Delayed next = delayed_.begin()->second;
    delayed_.erase(delayed_.begin());
    if (ClientIsGone(next.descriptor)) {
      close(next.descriptor);
    } else {
      events_.on_connection(next.listener, next.descriptor);
    }
  }
}

int ConnectionAcceptor::MillisecondsToNextTurn() const {
  if (delayed_.empty()) return -1;
  const absl::Duration left = delayed_.begin()->first - now_();
  // Rounded up: a little too early would be found too early, again and again.
  return static_cast<int>(
      std::max<int64_t>(0, absl::ToInt64Milliseconds(left + absl::Milliseconds(1))));
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
