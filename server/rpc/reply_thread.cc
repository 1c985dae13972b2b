#include "server/rpc/reply_thread.h"

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
  const MutexLock lock(mu_);
  posted_.push_back(std::move(function));
}

void ReplyThread::Wake() {
  const MutexLock lock(mu_);
  is_woken_ = true;
  changed_.NotifyOne();
}

void ReplyThread::Run() {
  std::vector<std::function<void()>> batch;
  while (true) {
    {
      const MutexLock lock(mu_);
      while (!is_woken_ && !stopping_) changed_.Wait(mu_);
      is_woken_ = false;
      if (posted_.empty() && stopping_) return;
      batch.swap(posted_);
    }
    for (const std::function<void()>& function : batch) function();
    batch.clear();
  }
}

}  // namespace ddl
