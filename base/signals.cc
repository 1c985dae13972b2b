#include "base/signals.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <utility>

#include "base/check.h"

namespace ddl {
namespace {

sigset_t WatchedSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGUSR1);
  sigaddset(&signals, SIGUSR2);
  return signals;
}

}  // namespace

void BlockSignals() {
  const sigset_t signals = WatchedSignals();
  DDL_CHECK(pthread_sigmask(SIG_BLOCK, &signals, nullptr) == 0, "cannot block signals");
  std::signal(SIGPIPE, SIG_IGN);
}

SignalWatcher::SignalWatcher(Calls calls) : calls_(std::move(calls)) {
  const sigset_t signals = WatchedSignals();
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  DDL_CHECK(signal_fd_ >= 0 && stop_fd_ >= 0, "cannot open a signal descriptor");
  thread_ = std::thread([this] { Watch(); });
}

SignalWatcher::~SignalWatcher() {
  const uint64_t one = 1;
  DDL_CHECK(write(stop_fd_, &one, sizeof one) == sizeof one, "cannot wake the signal thread");
  thread_.join();
  close(signal_fd_);
  close(stop_fd_);
}

void SignalWatcher::Watch() {
  pollfd fds[] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
  for (int count = 1;;) {
    if (poll(fds, 2, -1) < 0) {
      DDL_CHECK(errno == EINTR, "poll failed");
      continue;
    }
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof info) != sizeof info) continue;
    switch (info.ssi_signo) {
      case SIGUSR1:
        if (calls_.verbose) calls_.verbose();
        break;
      case SIGUSR2:
        if (calls_.not_verbose) calls_.not_verbose();
        break;
      default:
        calls_.stop(count++);
    }
  }
}

}  // namespace ddl
