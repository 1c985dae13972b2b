#include "server/connection_acceptor.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/engine/mutex.h"

namespace ddl {
namespace {

// What an acceptor hands on.
class Accepted {
 public:
  ~Accepted() {
    const MutexLock lock(mu_);
    for (const int connection : connections_) close(connection);
  }
  void Start(ConnectionAcceptor* acceptor) {
    acceptor->Start(
        [this](int /*listener*/, int connection) {
          const MutexLock lock(mu_);
          connections_.push_back(connection);
          changed_.NotifyAll();
        },
        [this] {
          const MutexLock lock(mu_);
          ++refused_;
          changed_.NotifyAll();
        });
  }
  void AwaitAccepted(size_t count) {
    const MutexLock lock(mu_);
    while (connections_.size() < count) changed_.Wait(mu_);
    EXPECT_EQ(connections_.size(), count);
  }
  void AwaitRefused(int count) {
    const MutexLock lock(mu_);
    while (refused_ < count) changed_.Wait(mu_);
    EXPECT_EQ(refused_, count);
  }
  void CloseFirst() {
    const MutexLock lock(mu_);
    close(connections_.front());
    connections_.erase(connections_.begin());
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<int> connections_ ABSL_GUARDED_BY(mu_);
  int refused_ ABSL_GUARDED_BY(mu_) = 0;
};

class Connection {
 public:
  Connection(int family, int port) : socket_(socket(family, SOCK_STREAM, 0)) {
    sockaddr_in v4 = {};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(port));
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sockaddr_in6 v6 = {};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = v4.sin_port;
    v6.sin6_addr = in6addr_loopback;
    connected_ =
        (family == AF_INET6 ? connect(socket_, reinterpret_cast<sockaddr*>(&v6), sizeof v6)
                            : connect(socket_, reinterpret_cast<sockaddr*>(&v4), sizeof v4)) == 0;
  }
  ~Connection() { close(socket_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  bool connected() const { return connected_; }
  // Waits for the other side to close it.
  bool EndsWithNothingRead() const {
    char byte = 0;
    return read(socket_, &byte, 1) <= 0;
  }

 private:
  const int socket_;
  bool connected_ = false;
};

bool HasVersion6() {
  const int listener = socket(AF_INET6, SOCK_STREAM, 0);
  sockaddr_in6 loopback = {};
  loopback.sin6_family = AF_INET6;
  loopback.sin6_addr = in6addr_loopback;
  const bool can = bind(listener, reinterpret_cast<sockaddr*>(&loopback), sizeof loopback) == 0;
  close(listener);
  return can;
}

TEST(ConnectionAcceptorTest, ListensWhereItIsTold) {
  struct Row {
    const char* address;
    bool v4;
    bool v6;
  };
  const Row rows[] = {
      {"127.0.0.1:0", true, false},
      {"0.0.0.0:0", true, true},
      {"[::]:0", true, true},
      {"[::1]:0", false, true},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.address);
    if (!row.v4 && !HasVersion6()) continue;
    const auto acceptor = ConnectionAcceptor::Listen(row.address, 10);
    ASSERT_TRUE(acceptor.ok()) << acceptor.status();
    Accepted accepted;
    accepted.Start(acceptor->get());
    ASSERT_GT((*acceptor)->port(), 0);
    EXPECT_EQ(Connection(AF_INET, (*acceptor)->port()).connected(), row.v4);
    EXPECT_EQ(Connection(AF_INET6, (*acceptor)->port()).connected(), row.v6 && HasVersion6());
    (*acceptor)->Stop();
    EXPECT_FALSE(Connection(row.v4 ? AF_INET : AF_INET6, (*acceptor)->port()).connected());
  }
}

TEST(ConnectionAcceptorTest, SaysWhenItCannotListen) {
  const auto first = ConnectionAcceptor::Listen("127.0.0.1:0", 10);
  ASSERT_TRUE(first.ok());
  const std::string taken = std::string(":").append(std::to_string((*first)->port()));
  for (const std::string& address : {"127.0.0.1" + taken, "0.0.0.0" + taken,
                                     std::string("192.0.2.1:0"), std::string("no.invalid:0")}) {
    const auto other = ConnectionAcceptor::Listen(address, 10);
    EXPECT_EQ(other.status().code(), absl::StatusCode::kUnavailable) << address;
  }
}

TEST(ConnectionAcceptorTest, ClosesWhatIsTooMuch) {
  const auto acceptor = ConnectionAcceptor::Listen("127.0.0.1:0", 2);
  ASSERT_TRUE(acceptor.ok());
  const int port = (*acceptor)->port();
  const Connection early(AF_INET, port);  // waits until it accepts
  Accepted accepted;
  accepted.Start(acceptor->get());
  accepted.AwaitAccepted(1);
  const Connection second(AF_INET, port);
  accepted.AwaitAccepted(2);
  EXPECT_EQ((*acceptor)->NumConnections(), 2);
  for (int i = 1; i <= 3; ++i) {
    EXPECT_TRUE(Connection(AF_INET, port).EndsWithNothingRead());
    accepted.AwaitRefused(i);
  }
  EXPECT_EQ((*acceptor)->NumConnections(), 2);

  accepted.CloseFirst();
  EXPECT_EQ((*acceptor)->NumConnections(), 1);
  const Connection third(AF_INET, port);  // gets the number of the one that was closed
  accepted.AwaitAccepted(2);
  EXPECT_TRUE(Connection(AF_INET, port).EndsWithNothingRead());
  accepted.AwaitRefused(4);
}

}  // namespace
}  // namespace ddl
