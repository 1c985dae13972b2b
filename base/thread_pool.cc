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

ThreadPool::ThreadPool(int num_threads, std::chrono::nanoseconds spin)
    : spin_(spin), parts_(static_cast<size_t>(std::max(num_threads, 1))) {
  DDL_CHECK(num_threads >= 1 && num_threads <= static_cast<int>(kInside),
            "a pool has at least its caller's thread, and no more than can be counted");
  for (size_t i = 1; i < parts_.size(); ++i) {
    workers_.emplace_back([this, i] { RunWorker(i); });
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
  const uint64_t grains = static_cast<uint64_t>((n - 1) / grain) + 1;
  DDL_CHECK(grains <= UINT32_MAX, "a loop of more grains than can be counted");
  n_ = n;
  grain_ = grain;
  body_ = &body;
  for (uint64_t i = 0, begin = 0; i < parts_.size(); ++i) {
    const uint64_t end = grains * (i + 1) / parts_.size();
    parts_[i].left.store(begin << 32 | end, std::memory_order_relaxed);
    begin = end;
  }
  state_.store((state_.load() & kLoop) + kNextLoop + kOpen);
  state_.notify_all();  // no system call where nobody sleeps
  Work(0);
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

void ThreadPool::RunWorker(size_t thread) {
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
    Work(thread);
    const uint32_t left = state_.fetch_sub(1) - 1;
    if ((left & (kInside | kOpen)) == 0 && caller_sleeps_.exchange(0) == 1) {
      caller_sleeps_.notify_one();
    }
  }
}

void ThreadPool::Work(size_t thread) const {
  const auto run = [this](Taken taken) {
    (*body_)(taken.begin * grain_, std::min(n_, taken.end * grain_));
  };
  Part& own = parts_[thread];
  for (Taken taken = TakeFront(own); taken.begin < taken.end; taken = TakeFront(own)) run(taken);
  for (size_t i = 1; i < parts_.size(); ++i) {
    Part& other = parts_[(thread + i) % parts_.size()];
    for (Taken taken = TakeBack(other); taken.begin < taken.end; taken = TakeBack(other)) {
      run(taken);
    }
  }
}

ThreadPool::Taken ThreadPool::TakeFront(Part& part) {
  uint64_t left = part.left.load(std::memory_order_relaxed);
  for (;;) {
    const uint32_t begin = static_cast<uint32_t>(left >> 32), end = static_cast<uint32_t>(left);
    if (begin >= end) return {};
    const uint32_t taken_end = begin + (end - begin + 1) / 2;
    if (part.left.compare_exchange_weak(left, static_cast<uint64_t>(taken_end) << 32 | end,
                                        std::memory_order_relaxed)) {
      return {begin, taken_end};
    }
  }
}

ThreadPool::Taken ThreadPool::TakeBack(Part& part) {
  uint64_t left = part.left.load(std::memory_order_relaxed);
  for (;;) {
    const uint32_t begin = static_cast<uint32_t>(left >> 32), end = static_cast<uint32_t>(left);
    if (begin >= end) return {};
    const uint32_t taken_begin = end - (end - begin + 1) / 2;
    if (part.left.compare_exchange_weak(left, static_cast<uint64_t>(begin) << 32 | taken_begin,
                                        std::memory_order_relaxed)) {
      return {taken_begin, end};
    }
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
