#ifndef DDL_TESTS_MODEL_KERNELS_CUDA_BLOCK_H_
#define DDL_TESTS_MODEL_KERNELS_CUDA_BLOCK_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

// Runs CUDA kernels on the CPU: every CUDA thread is a fiber, and the fibers of a block take turns
// at barriers and warp shuffles. One block runs after the other, all on the calling thread.
//
// Stricter than the device: it ends the process when threads of a warp or block wait for each other
// forever, when a thread leaves while others wait for it, and (with the device.cuh of the tests) at
// an access that is not aligned. Shared memory has exactly the bytes of the launch and is full of
// NaNs at the start of each block. What runs between two barriers runs in the order of the
// schedule: a missing barrier shows as a result that differs between schedules.

namespace ddl::kernels::cuda_host {

struct Index {
  unsigned x = 0;
  unsigned y = 0;
  unsigned z = 0;

  bool operator==(const Index&) const = default;
};

// As CUDA names them, of the thread that runs now.
extern Index thread_index, block_index, block_size, grid_size;

// In which order blocks, and threads of a block between barriers, run: 0 ascending, 1 descending,
// from 2 on shuffled, each number its own way.
void SetSchedule(uint32_t schedule);

// The extents of a launch, which a captured one keeps.
struct LaunchShape {
  Index blocks;
  unsigned threads = 0;
  size_t shared_bytes = 0;

  bool operator==(const LaunchShape&) const = default;
};
// Each launch from here on is added to `launches`; null: to nothing.
void RecordLaunches(std::vector<LaunchShape>* launches);

void RunGrid(Index blocks, unsigned threads, size_t shared_bytes,
             const std::function<void()>& kernel);

// Called by kernels.
void ThreadBegins();
void BlockBarrier();
void WarpBarrier();
uint64_t WarpExchange(uint64_t value, unsigned source_lane);  // the value of that lane
unsigned char* SharedMemory();

// At the end of a thread: ends the process unless it has called ThreadBegins.
void CheckBegun();

}  // namespace ddl::kernels::cuda_host

#endif  // DDL_TESTS_MODEL_KERNELS_CUDA_BLOCK_H_
