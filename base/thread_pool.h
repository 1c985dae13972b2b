#ifndef DDL_BASE_THREAD_POOL_H_
#define DDL_BASE_THREAD_POOL_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace ddl {

// Threads that compute loops together with the thread that asks for them.
//
// Made for many short loops with little between them: a thread without work spins for a bounded
// time before it sleeps, so that in most loops nobody has to be woken. And for processors that
// others use as well: a loop never waits for a thread that has not begun to work on it. One that
// the system does not let run, because the machine is busy or a quota is used up, leaves its part
// to the others, and holds them up only for what it has taken already.
class ThreadPool {
 public:
  // Longer than what lies between two loops of a step and between two steps, and little beside the
  // time that a thread of a busy machine runs at a stretch.
  static constexpr std::chrono::microseconds kDefaultSpin{200};

  // `num_threads` >= 1, of which the caller of ParallelFor is one: the others are started here.
  // `spin`: how long a thread without work keeps its processor. Zero where there are fewer
  // processors than threads, which would have better uses for it.
  explicit ThreadPool(int num_threads, std::chrono::nanoseconds spin = kDefaultSpin);
  ~ThreadPool();  // no ParallelFor may be running
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Calls body(begin, end), which must not throw, on disjoint ranges that cover [0, n), on several
  // threads at a time, and returns when all have returned. Ranges are at least `grain` >= 1 long
  // but for the last, and n is below 2^32 grains. Each thread has a part of [0, n) of its own and
  // goes through it in order, by long ranges first and short ones at the end, and then takes from
  // the ends of the others' parts, so that all end together. To be called by one thread at a time,
  // and not by a body.
  void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> body);

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

 private:
  // Of state_: the lowest bits count the workers that are in the loop; then kOpen, while more may
  // join it; kStop, for good; and the loop's number, modulo what fits.
  static constexpr uint32_t kInside = (1u << 12) - 1;
  static constexpr uint32_t kOpen = 1u << 12;
  static constexpr uint32_t kStop = 1u << 13;
  static constexpr uint32_t kLoop = ~((1u << 14) - 1);
  static constexpr uint32_t kNextLoop = 1u << 14;

  // What is left of a thread's part of a loop, in grains: begin in the upper half, end below.
  // Its thread takes from the front, the others from the back. On a cache line of its own.
  struct alignas(64) Part {
    std::atomic<uint64_t> left{0};
  };
  struct Taken {
    uint32_t begin = 0, end = 0;
  };

  void RunWorker(size_t thread);
  void Work(size_t thread) const;
  // About half of what is left; empty if nothing is.
  static Taken TakeFront(Part& part);
  static Taken TakeBack(Part& part);
  // The state once it holds, which is looked at for `spin_` and then at changes of `changed`.
  template <typename Condition, typename Sleep>
  void Wait(const Condition& condition, const Sleep& sleep) const;

  const std::chrono::nanoseconds spin_;
  alignas(64) std::atomic<uint32_t> state_{0};
  alignas(64) std::atomic<uint32_t> caller_sleeps_{0};

  // The loop. Written by the caller while nobody is inside.
  int64_t n_ = 0;
  int64_t grain_ = 1;
  const absl::FunctionRef<void(int64_t, int64_t)>* body_ = nullptr;
  mutable std::vector<Part> parts_;  // the caller's, then each worker's

  std::vector<std::thread> workers_;
};

}  // namespace ddl

#endif  // DDL_BASE_THREAD_POOL_H_
