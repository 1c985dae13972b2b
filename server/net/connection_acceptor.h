#ifndef DDL_SERVER_NET_CONNECTION_ACCEPTOR_H_
#define DDL_SERVER_NET_CONNECTION_ACCEPTOR_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "server/net/connection_rate.h"

namespace ddl {

struct ConnectionLimits {
  int max_connections = 0;  // that stand at a time; at least 1
  int per_second = 0;       // new ones from one address, as ConnectionRate has it; 0: any number
};

// Why a connection was closed as soon as it had come.
enum class ConnectionRefusal { kTooMany, kTooFast };

// Listens on a TCP address and hands on connections, but no more at a time than may stand, and no
// more a second from one address than it may have: gRPC's own listening takes whatever comes,
// until no file descriptor is left for anybody, or no time for those that have come before. An
// address is an IPv4 address, or the first half of an IPv6 one, which is what a site is given.
class ConnectionAcceptor {
 public:
  // What becomes of connections. On the accepting thread.
  struct Events {
    // Takes over the open file descriptor `connection`, which came in at `listener`.
    std::function<void(int listener, int connection)> on_connection;
    std::function<void(ConnectionRefusal)> on_refused;
    // Its address is over the rate: it will be handed on later.
    std::function<void()> on_delayed;
  };

  // Listens, without accepting yet: what comes meanwhile waits. `address` is HOST:PORT; HOST may
  // be a name or [IPv6], and 0.0.0.0 is every address of either version. UNAVAILABLE when it cannot
  // be listened on. `now`: the clock of the rate.
  static absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> Listen(
      const std::string& address, const ConnectionLimits& limits,
      std::function<absl::Time()> now = absl::Now);
  ~ConnectionAcceptor();

  ConnectionAcceptor(const ConnectionAcceptor&) = delete;
  ConnectionAcceptor& operator=(const ConnectionAcceptor&) = delete;

  int port() const { return port_; }

  // Once.
  void Start(Events events);
  // Nothing is handed on after this, and nobody listens. Those that wait for their turn are closed.
  void Stop();

  // How many stand: handed on, or waiting for their turn. Any thread.
  int64_t NumConnections();

 private:
  // The inode of a socket is unique: it distinguishes a closed connection from another one that has
  // got its number.
  struct Connection {
    int descriptor;
    ino_t inode;
  };

  struct Delayed {
    int listener;
    int descriptor;
  };

  ConnectionAcceptor(const ConnectionLimits& limits, std::function<absl::Time()> now);

  void Accept();
  // Accepts what waits at `listener`. Milliseconds to pause before accepting more: there is no file
  // descriptor for it, or much of it came too fast.
  int AcceptAll(int listener);
  // Remembers a connection, if one more may stand.
  bool Admit(int connection);
  // Hands on, keeps or closes what has just come from `address`; why, if it closed it.
  std::optional<ConnectionRefusal> Sort(int listener, int connection, const std::string& address);
  // Those whose turn it is. One whose client has not waited for it is closed.
  void HandOnDelayed();
  // For poll: until the next turn; -1 without one.
  int MillisecondsToNextTurn() const;
  void ForgetClosed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after Start.
  const int max_connections_;
  int port_ = 0;
  std::vector<int> listeners_;
  int stop_event_ = -1;  // readable once the thread is to end
  const std::function<absl::Time()> now_;
  Events events_;

  // Of the accepting thread.
  ConnectionRate rate_;
  std::multimap<absl::Time, Delayed> delayed_;  // by turn

  Mutex mu_;
  std::vector<Connection> connections_ ABSL_GUARDED_BY(mu_);  // some may be closed
  absl::Time next_look_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  std::thread thread_;
};

}  // namespace ddl

#endif  // DDL_SERVER_NET_CONNECTION_ACCEPTOR_H_
