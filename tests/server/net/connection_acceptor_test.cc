#include "server/net/connection_acceptor.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <iterator>
#include <list>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"

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
    acceptor->Start({.on_connection =
                         [this](int /*listener*/, int connection) {
                           const MutexLock lock(mu_);
                           connections_.push_back(connection);
                           changed_.NotifyAll();
                         },
                     .on_refused =
                         [this](ConnectionRefusal refusal) {
                           const MutexLock lock(mu_);
                           ++refused_[refusal];
                           changed_.NotifyAll();
                         },
                     .on_delayed =
                         [this] {
                           const MutexLock lock(mu_);
                           ++delayed_;
                           changed_.NotifyAll();
                         }});
  }
  void AwaitAccepted(size_t count) {
    const MutexLock lock(mu_);
    while (connections_.size() < count) changed_.Wait(mu_);
    EXPECT_EQ(connections_.size(), count);
  }
  void AwaitRefused(ConnectionRefusal refusal, int count) {
    const MutexLock lock(mu_);
    while (refused_[refusal] < count) changed_.Wait(mu_);
    EXPECT_EQ(refused_[refusal], count);
    EXPECT_EQ(refused_.size(), 1U);
  }
  void AwaitDelayed(int count) {
    const MutexLock lock(mu_);
    while (delayed_ < count) changed_.Wait(mu_);
    EXPECT_EQ(delayed_, count);
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
  std::map<ConnectionRefusal, int> refused_ ABSL_GUARDED_BY(mu_);
  int delayed_ ABSL_GUARDED_BY(mu_) = 0;
};

class Connection {
 public:
  // `from`: the own address, of IPv4.
  Connection(int family, int port, const char* from = nullptr)
      : socket_(socket(family, SOCK_STREAM, 0)) {
    if (from != nullptr) {
      sockaddr_in own = {};
      own.sin_family = AF_INET;
      own.sin_addr.s_addr = inet_addr(from);
      EXPECT_EQ(bind(socket_, reinterpret_cast<sockaddr*>(&own), sizeof own), 0) << from;
    }
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

TEST(ConnectionAcceptorTest, ListensOnTheGivenAddress) {
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
    const auto acceptor = ConnectionAcceptor::Listen(row.address, {.max_connections = 10});
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
  const auto first = ConnectionAcceptor::Listen("127.0.0.1:0", {.max_connections = 10});
  ASSERT_TRUE(first.ok());
  const std::string taken = std::string(":").append(std::to_string((*first)->port()));
  for (const std::string& address : {"127.0.0.1" + taken, "0.0.0.0" + taken,
                                     std::string("192.0.2.1:0"), std::string("no.invalid:0")}) {
    const auto other = ConnectionAcceptor::Listen(address, {.max_connections = 10});
    EXPECT_EQ(other.status().code(), absl::StatusCode::kUnavailable) << address;
  }
}

TEST(ConnectionAcceptorTest, ClosesWhatIsTooMuch) {
  const auto acceptor = ConnectionAcceptor::Listen("127.0.0.1:0", {.max_connections = 2});
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
    accepted.AwaitRefused(ConnectionRefusal::kTooMany, i);
  }
  EXPECT_EQ((*acceptor)->NumConnections(), 2);

  accepted.CloseFirst();
  EXPECT_EQ((*acceptor)->NumConnections(), 1);
  const Connection third(AF_INET, port);  // gets the number of the one that was closed
  accepted.AwaitAccepted(2);
  EXPECT_TRUE(Connection(AF_INET, port).EndsWithNothingRead());
  accepted.AwaitRefused(ConnectionRefusal::kTooMany, 4);
}

// With two a second from an address: two at once, twenty that wait for up to ten seconds, and the
// rest is closed. Connections from another address make the thread look at its clock, and are not
// held up by those that wait.
TEST(ConnectionAcceptorTest, HoldsBackWhatComesTooFast) {
  std::atomic<int64_t> seconds = 1000;
  const auto acceptor =
      ConnectionAcceptor::Listen("0.0.0.0:0", {.max_connections = 100, .per_second = 2},
                                 [&seconds] { return absl::FromUnixSeconds(seconds); });
  ASSERT_TRUE(acceptor.ok());
  const int port = (*acceptor)->port();
  Accepted accepted;
  accepted.Start(acceptor->get());
  std::list<Connection> fast, others;
  for (int i = 0; i < 2; ++i) fast.emplace_back(AF_INET, port);
  accepted.AwaitAccepted(2);
  for (int i = 0; i < 20; ++i) fast.emplace_back(AF_INET, port);
  accepted.AwaitDelayed(20);
  EXPECT_TRUE(Connection(AF_INET, port).EndsWithNothingRead());
  accepted.AwaitRefused(ConnectionRefusal::kTooFast, 1);
  EXPECT_EQ((*acceptor)->NumConnections(), 22);

  others.emplace_back(AF_INET, port, "127.0.0.2");
  accepted.AwaitAccepted(3);
  fast.erase(std::next(fast.begin(), 2));  // has not waited for its turn
  ++seconds;
  others.emplace_back(AF_INET, port, "127.0.0.2");
  accepted.AwaitAccepted(5);
  seconds += 8;
  others.emplace_back(AF_INET, port, "127.0.0.2");
  accepted.AwaitAccepted(22);
  // What still waits is closed with the rest.
  (*acceptor)->Stop();
  EXPECT_TRUE(fast.back().EndsWithNothingRead());
  accepted.AwaitAccepted(22);
}

// By a real clock, nobody else has to come.
TEST(ConnectionAcceptorTest, HandsOnWhatItHeldBackWhenItsTurnComes) {
  const auto acceptor =
      ConnectionAcceptor::Listen("127.0.0.1:0", {.max_connections = 100, .per_second = 50});
  ASSERT_TRUE(acceptor.ok());
  Accepted accepted;
  accepted.Start(acceptor->get());
  std::list<Connection> fast;
  for (int i = 0; i < 60; ++i) fast.emplace_back(AF_INET, (*acceptor)->port());
  accepted.AwaitAccepted(60);
}

}  // namespace
}  // namespace ddl
