#ifndef DDL_BASE_SIGNALS_H_
#define DDL_BASE_SIGNALS_H_

#include <functional>
#include <thread>

namespace ddl {

// Keeps the signals of SignalWatcher from ending the process; they wait for one. Call before
// any other thread is started: threads inherit it. Also ignores SIGPIPE: a client that hangs up
// is an error of one write.
void BlockSignals();

// Turns signals into calls of functions on a thread of its own, so that no work is done in a
// signal handler. A signal that came before counts too; one that comes again before its call may
// count once.
//
// The log level is changed by signals because they need no address that would have to be kept
// from others: the kernel lets only the same user and root send them, and every supervisor can
// (kill, systemctl kill, docker kill, kubectl exec). Each signal names a state, so that sending it
// twice does no harm.
//
// BlockSignals comes first.
class SignalWatcher {
 public:
  struct Calls {
    // SIGTERM, SIGINT: gets 1 for the first, 2 for the second, and so on.
    std::function<void(int count)> stop;
    // SIGUSR1 and SIGUSR2; without a function, such a signal has no effect.
    std::function<void()> verbose;
    std::function<void()> not_verbose;
  };
  explicit SignalWatcher(Calls calls);
  // No call is running or comes after this.
  ~SignalWatcher();

  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  void Watch();

  const Calls calls_;
  int signal_fd_ = -1;
  int stop_fd_ = -1;
  std::thread thread_;
};

}  // namespace ddl

#endif  // DDL_BASE_SIGNALS_H_
