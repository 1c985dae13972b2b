#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace ddl {
namespace {

using std::chrono::microseconds;

// Every index once, whatever the threads, the length and the grain; ranges of at least a grain.
TEST(ThreadPoolTest, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 3, 7}) {
    for (const microseconds spin : {microseconds(0), ThreadPool::kDefaultSpin}) {
      ThreadPool pool(threads, spin);
      EXPECT_EQ(pool.num_threads(), threads);
      for (const int64_t n : {0, 1, 2, 3, 7, 8, 63, 64, 65, 1000}) {
        for (const int64_t grain : {1, 2, 7, 64, 999, 1000, 1001}) {
          std::vector<std::atomic<int>> visits(static_cast<size_t>(n));
          std::atomic<int> short_ranges = 0;
          pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
            short_ranges += end - begin < grain;
            for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
          });
          for (const std::atomic<int>& count : visits) {
            ASSERT_EQ(count, 1) << threads << " threads, n " << n << ", grain " << grain;
          }
          ASSERT_LE(short_ranges, 1) << "n " << n << ", grain " << grain;
        }
      }
    }
  }
}

// Ranges that each wait for all others end only if as many threads run at the same time.
TEST(ThreadPoolTest, ThreadsWorkAtTheSameTime) {
  for (const int threads : {2, 5}) {
    ThreadPool pool(threads, microseconds(0));
    for (int round = 0; round < 100; ++round) {
      std::latch all_here(threads);
      pool.ParallelFor(threads, 1, [&](int64_t begin, int64_t end) {
        EXPECT_EQ(end - begin, 1);
        all_here.arrive_and_wait();
      });
    }
  }
}

// A thread begins with a part of its own and goes on where it was; what a thread that is held up
// has not begun is taken from the end.
TEST(ThreadPoolTest, ThreadsFollowTheirOwnParts) {
  ThreadPool pool(2, microseconds(0));
  for (int round = 0; round < 100; ++round) {
    std::latch both_here(2), rest_is_done(1);
    std::set<int64_t> firsts;
    std::vector<int64_t> begins;  // of the thread that is not held up
    std::mutex mutex;
    pool.ParallelFor(16, 1, [&](int64_t begin, int64_t end) {
      static thread_local int last_round = -1;
      if (last_round != round) {
        last_round = round;
        {
          const std::scoped_lock lock(mutex);
          firsts.insert(begin);
        }
        both_here.arrive_and_wait();
        if (begin == 8) rest_is_done.wait();
        return;
      }
      if (rest_is_done.try_wait()) return;
      begins.push_back(begin);
      if (end == 13) rest_is_done.count_down();
    });
    EXPECT_EQ(firsts, (std::set<int64_t>{0, 8}));
    // [8, 12) is what the other has begun; 16 - 12 = 4 are left of its part, taken by halves.
    EXPECT_EQ(begins, (std::vector<int64_t>{4, 6, 7, 14, 13, 12}));
  }
}

// What the loop before wrote is seen by the next, and the caller sees all of both: many loops, so
// that threads are met in every stage of waking, working and falling asleep. More threads than the
// machine has processors, too.
TEST(ThreadPoolTest, LoopsFollowEachOther) {
  for (const int threads : {2, 3, 16}) {
    for (const microseconds spin : {microseconds(0), microseconds(5), ThreadPool::kDefaultSpin}) {
      ThreadPool pool(threads, spin);
      std::vector<int64_t> values(64, 0);  // not atomic: TSan checks the order
      for (int64_t loop = 1; loop <= 3000; ++loop) {
        std::atomic<int64_t> sum = 0;
        pool.ParallelFor(64, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            int64_t& value = values[static_cast<size_t>(63 - i)];
            sum += value == loop - 1;
            value = loop;
          }
        });
        ASSERT_EQ(sum, 64) << threads << " threads, loop " << loop;
      }
    }
  }
}

// The caller may be another thread from loop to loop, and a pool may go without ever having worked.
TEST(ThreadPoolTest, AnyThreadMayCall) {
  ThreadPool idle(4);
  ThreadPool pool(3, microseconds(1));
  for (int i = 0; i < 20; ++i) {
    std::atomic<int64_t> sum = 0;
    std::thread([&] {
      pool.ParallelFor(100, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
    }).join();
    EXPECT_EQ(sum, 100);
  }
}

}  // namespace
}  // namespace ddl
