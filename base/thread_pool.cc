#include "base/thread_pool.h"

#include <pthread.h>

#include <algorithm>

#include "base/check.h"

namespace ddl {
namespace {

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, std::chrono::nanoseconds spin) : spin_(spin) {
  DDL_CHECK(num_threads >= 1 && num_threads <= static_cast<int>(kInside),
            "a pool has at least its caller's thread, and no more than can be counted");
  for (int i = 1; i < num_threads; ++i) {
    workers_.emplace_back([this] { RunWorker(); });
    pthread_setname_np(workers_.back().native_handle(), "ddl-compute");
  }
}

ThreadPool::~ThreadPool() {
  state_.fetch_or(kStop);
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t n, int64_t grain,
                             absl::FunctionRef<void(int64_t, int64_t)> body) {
  if (n <= 0) return;
  if (workers_.empty() || n <= grain) return body(0, n);
  n_ = n;
  grain_ = grain;
  body_ = &body;
  next_.store(0, std::memory_order_relaxed);
  state_.store((state_.load() & kLoop) + kNextLoop + kOpen);
  state_.notify_all();  // no system call where nobody sleeps
  Work(n, grain, body);
  // Whoever has not come yet is not needed any more.
  state_.fetch_and(~kOpen);
  const auto is_done = [this] { return (state_.load() & kInside) == 0; };
  Wait(is_done, [&] {
    caller_sleeps_ = 1;
    // Either this sees that the last has left, or the last sees that somebody sleeps.
    while (!is_done()) caller_sleeps_.wait(1);
    caller_sleeps_ = 0;
  });
}

void ThreadPool::RunWorker() {
  uint32_t last = 0;  // the loop that this thread has been in
  for (;;) {
    uint32_t state = 0;
    const auto has_work = [&] {
      state = state_.load();
      return (state & kStop) != 0 || ((state & kOpen) != 0 && (state & kLoop) != last);
    };
    Wait(has_work, [&] {
      while (!has_work()) state_.wait(state);
    });
    if ((state & kStop) != 0) return;
    if (!state_.compare_exchange_strong(state, state + 1)) continue;
    last = state & kLoop;
    Work(n_, grain_, *body_);
    const uint32_t left = state_.fetch_sub(1) - 1;
    if ((left & (kInside | kOpen)) == 0 && caller_sleeps_.exchange(0) == 1) {
      caller_sleeps_.notify_one();
    }
  }
}

void ThreadPool::Work(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> body) {
  constexpr int64_t kPartsOfThread = 2;  // of what is left
  const int64_t parts = num_threads() * kPartsOfThread;
  int64_t begin = next_.load(std::memory_order_relaxed);
  while (begin < n) {
    const int64_t end = std::min(n, begin + std::max(grain, (n - begin) / parts));
    if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
    body(begin, end);
    begin = next_.load(std::memory_order_relaxed);
  }
}

template <typename Condition, typename Sleep>
void ThreadPool::Wait(const Condition& condition, const Sleep& sleep) const {
  constexpr int kLooksForTime = 32;  // looks between those at the clock
  if (condition()) return;
  const auto end = std::chrono::steady_clock::now() + spin_;
  do {
    for (int i = 0; i < kLooksForTime; ++i) {
      if (condition()) return;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  sleep();
}

}  // namespace ddl
