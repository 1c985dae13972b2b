// The host's CUDA blocks themselves: that threads meet where they should, and that what a device
// would hang or fault on ends the test.

#include "tests/model/kernels/cuda/block.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ddl::kernels::cuda_host {
namespace {

float* SharedFloats() { return reinterpret_cast<float*>(SharedMemory()); }

TEST(CudaBlockTest, EveryThreadOfEveryBlockRunsOnce) {
  for (const uint32_t schedule : {0u, 1u, 2u, 3u}) {
    SetSchedule(schedule);
    std::vector<int> runs(2 * 3 * 4 * 64);
    RunGrid({2, 3, 4}, 64, 0, [&] {
      const unsigned block =
          (block_index.z * grid_size.y + block_index.y) * grid_size.x + block_index.x;
      ++runs[block * block_size.x + thread_index.x];
    });
    EXPECT_EQ(std::count(runs.begin(), runs.end(), 1), static_cast<int64_t>(runs.size()));
  }
  SetSchedule(0);
}

TEST(CudaBlockTest, BarriersAndShufflesExchangeValues) {
  for (const uint32_t schedule : {0u, 1u, 2u, 3u}) {
    SetSchedule(schedule);
    std::vector<float> reversed(96);
    std::vector<uint64_t> sum(96);
    RunGrid({1, 1, 1}, 96, 96 * sizeof(float), [&] {
      const unsigned t = thread_index.x;
      for (unsigned round = 0; round < 3; ++round) {
        SharedFloats()[t] = static_cast<float>(t + round);
        BlockBarrier();
        reversed[t] = SharedFloats()[95 - t];
        BlockBarrier();
      }
      uint64_t value = t;
      for (unsigned distance = 16; distance > 0; distance /= 2) {
        value += WarpExchange(value, t % 32 ^ distance);
        if (distance == 4) WarpBarrier();
      }
      sum[t] = value;
    });
    for (unsigned t = 0; t < 96; ++t) {
      EXPECT_EQ(reversed[t], static_cast<float>(95 - t + 2)) << "schedule " << schedule;
      const unsigned first = t / 32 * 32;
      EXPECT_EQ(sum[t], 32 * first + 31 * 16) << "schedule " << schedule;
    }
  }
  SetSchedule(0);
}

TEST(CudaBlockTest, SharedMemoryStartsWithoutValues) {
  int numbers = 0;
  RunGrid({3, 1, 1}, 32, 32 * sizeof(float), [&] {
    if (!std::isnan(SharedFloats()[thread_index.x])) ++numbers;
    SharedFloats()[thread_index.x] = 1.0f;
  });
  EXPECT_EQ(numbers, 0);
}

// A kernel that lacks a barrier gives different results under different schedules.
TEST(CudaBlockTest, SchedulesTellThatABarrierIsMissing) {
  std::set<std::string> results;
  for (const uint32_t schedule : {0u, 1u, 2u}) {
    SetSchedule(schedule);
    std::vector<float> neighbour(64);
    RunGrid({1, 1, 1}, 64, 64 * sizeof(float), [&] {
      const unsigned t = thread_index.x;
      SharedFloats()[t] = static_cast<float>(t);
      neighbour[t] = SharedFloats()[(t + 1) % 64];
    });
    results.insert(std::string(reinterpret_cast<const char*>(neighbour.data()), 64 * 4));
  }
  SetSchedule(0);
  EXPECT_EQ(results.size(), 3u);
}

TEST(CudaBlockDeathTest, WhatADeviceWouldHangOnEndsTheTest) {
  struct Row {
    std::string name;
    void (*kernel)();
    std::string message;
  };
  const std::vector<Row> rows = {
      {"a barrier that one thread does not reach",
       [] {
         if (thread_index.x != 5) BlockBarrier();
       },
       "some threads have left"},
      {"a shuffle that one lane does not reach",
       [] {
         if (thread_index.x != 40) WarpExchange(1, 0);
       },
       "a shuffle that not all lanes"},
      {"a barrier for some, a shuffle for others",
       [] { thread_index.x > 7 ? BlockBarrier() : WarpBarrier(); },
       "some threads wait at a barrier"},
      {"two kinds in a warp",
       [] {
         if (thread_index.x % 2 == 0) {
           WarpBarrier();
         } else {
           WarpExchange(1, 0);
         }
       },
       "another kind of barrier"},
  };
  for (const Row& row : rows) {
    EXPECT_DEATH(RunGrid({1, 1, 1}, 64, 0, row.kernel), row.message) << row.name;
  }
}

TEST(CudaBlockDeathTest, LaunchesThatADeviceRefusesEndTheTest) {
  const auto nothing = [] {};
  EXPECT_DEATH(RunGrid({0, 1, 1}, 32, 0, nothing), "empty grid");
  EXPECT_DEATH(RunGrid({1, 65536, 1}, 32, 0, nothing), "limit of the grid");
  EXPECT_DEATH(RunGrid({1, 1, 1}, 2048, 0, nothing), "limit of the block");
  EXPECT_DEATH(RunGrid({1, 1, 1}, 33, 0, nothing), "whole warps");
  EXPECT_DEATH(RunGrid({1, 1, 1}, 32, 100 * 1024, nothing), "limits that we build for");
}

}  // namespace
}  // namespace ddl::kernels::cuda_host
