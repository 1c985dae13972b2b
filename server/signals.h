#ifndef DDL_SERVER_SIGNALS_H_
#define DDL_SERVER_SIGNALS_H_

#include <functional>
#include <thread>

namespace ddl {

// Keeps SIGTERM and SIGINT from ending the process; they wait for a SignalWatcher. Call before
// any other thread is started: threads inherit it. Also ignores SIGPIPE: a client that hangs up
// is an error of one write.
void BlockStopSignals();

// Turns SIGTERM and SIGINT into calls of a function on a thread of its own, so that no work is
// done in a signal handler. A signal that came before counts too.
//
// BlockStopSignals comes first.
class SignalWatcher {
 public:
  // `on_signal` gets 1 for the first signal, 2 for the second, and so on.
  explicit SignalWatcher(std::function<void(int count)> on_signal);
  // No call is running or comes after this.
  ~SignalWatcher();

  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  void Watch();

  const std::function<void(int)> on_signal_;
  int signal_fd_ = -1;
  int stop_fd_ = -1;
  std::thread thread_;
};

}  // namespace ddl

#endif  // DDL_SERVER_SIGNALS_H_
