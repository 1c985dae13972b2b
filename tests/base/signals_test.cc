#include "base/signals.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"

namespace ddl {
namespace {

// What a watcher called, as text.
class Heard {
 public:
  void Add(const std::string& what) {
    const MutexLock lock(mu_);
    text_ += what;
    changed_.NotifyAll();
  }
  // Waits until there is something, and takes it.
  std::string Take() {
    const MutexLock lock(mu_);
    while (text_.empty()) changed_.Wait(mu_);
    return std::exchange(text_, "");
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::string text_ ABSL_GUARDED_BY(mu_);
};

TEST(SignalsTest, CallsAFunctionForEachSignal) {
  BlockSignals();
  Heard heard;
  kill(getpid(), SIGUSR1);  // before anyone watches
  const SignalWatcher watcher({.stop = [&](int count) { heard.Add(absl::StrCat("stop ", count)); },
                               .verbose = [&] { heard.Add("verbose"); },
                               .not_verbose = [&] { heard.Add("not verbose"); }});
  EXPECT_EQ(heard.Take(), "verbose");
  struct Row {
    int signal;
    const char* expected;
  };
  const Row rows[] = {
      {SIGUSR2, "not verbose"}, {SIGUSR1, "verbose"}, {SIGTERM, "stop 1"},
      {SIGUSR1, "verbose"},     {SIGINT, "stop 2"},   {SIGTERM, "stop 3"},
  };
  for (const Row& row : rows) {
    kill(getpid(), row.signal);
    EXPECT_EQ(heard.Take(), row.expected) << row.signal;
  }
}

TEST(SignalsTest, SignalsWithoutAFunctionDoNothing) {
  BlockSignals();
  Heard heard;
  const SignalWatcher watcher({.stop = [&](int count) { heard.Add(absl::StrCat("stop ", count)); },
                               .verbose = {},
                               .not_verbose = {}});
  kill(getpid(), SIGUSR1);
  kill(getpid(), SIGUSR2);
  kill(getpid(), SIGTERM);
  EXPECT_EQ(heard.Take(), "stop 1");
}

}  // namespace
}  // namespace ddl
