#include "server/reply_thread.h"

#include <utility>

namespace ddl {

ReplyThread::ReplyThread() : thread_([this] { Run(); }) {}

ReplyThread::~ReplyThread() {
  {
    const MutexLock lock(mu_);
    stopping_ = true;
  }
  changed_.NotifyOne();
  thread_.join();
}

void ReplyThread::Post(std::function<void()> function) {
  {
    const MutexLock lock(mu_);
    posted_.push_back(std::move(function));
  }
  changed_.NotifyOne();
}

void ReplyThread::Run() {
  std::vector<std::function<void()>> batch;
  while (true) {
    {
      const MutexLock lock(mu_);
      while (posted_.empty() && !stopping_) changed_.Wait(mu_);
      if (posted_.empty()) return;
      batch.swap(posted_);
    }
    for (const std::function<void()>& function : batch) function();
    batch.clear();
  }
}

}  // namespace ddl
