#ifndef DDL_SERVER_CONNECTION_ACCEPTOR_H_
#define DDL_SERVER_CONNECTION_ACCEPTOR_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/mutex.h"

namespace ddl {

// Listens on a TCP address and hands on connections, but no more at a time than may stand: gRPC's
// own listening takes whatever comes, until no file descriptor is left for anybody.
class ConnectionAcceptor {
 public:
  // Takes over the open file descriptor `connection`, which came in at `listener`. On the
  // accepting thread.
  using Handler = std::function<void(int listener, int connection)>;

  // Listens, without accepting yet: what comes meanwhile waits. `address` is HOST:PORT; HOST may
  // be a name or [IPv6], and 0.0.0.0 is every address of either version. UNAVAILABLE when it
  // cannot be listened on.
  static absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> Listen(const std::string& address,
                                                                    int max_connections);
  ~ConnectionAcceptor();

  ConnectionAcceptor(const ConnectionAcceptor&) = delete;
  ConnectionAcceptor& operator=(const ConnectionAcceptor&) = delete;

  int port() const { return port_; }

  // Once. `on_refused`: of a connection that is closed because there are too many.
  void Start(Handler handler, std::function<void()> on_refused);
  // Nothing is handed on after this, and nobody listens.
  void Stop();

  // Of those handed on, how many stand. Any thread.
  int64_t NumConnections();

 private:
  // The inode of a socket is its own: another connection that has got the number of a closed one
  // is told from it.
  struct Connection {
    int descriptor;
    ino_t inode;
  };

  explicit ConnectionAcceptor(int max_connections) : max_connections_(max_connections) {}

  void Accept();
  // Accepts what waits at `listener`. False when there is no file descriptor for it.
  bool AcceptAll(int listener);
  // Remembers a connection, if one more may stand.
  bool Admit(int connection);
  void ForgetClosed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after Start.
  const int max_connections_;
  int port_ = 0;
  std::vector<int> listeners_;
  int stop_event_ = -1;  // readable once the thread is to end
  Handler handler_;
  std::function<void()> on_refused_;

  Mutex mu_;
  std::vector<Connection> connections_ ABSL_GUARDED_BY(mu_);  // some may be closed
  absl::Time next_look_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  std::thread thread_;
};

}  // namespace ddl

#endif  // DDL_SERVER_CONNECTION_ACCEPTOR_H_
