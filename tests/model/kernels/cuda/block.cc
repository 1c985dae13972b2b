// Fibers switch by sigsetjmp and siglongjmp, which cost some nanoseconds where swapcontext asks
// the kernel for the signal mask each time; makecontext only makes their stacks.
#undef _FORTIFY_SOURCE  // its longjmp refuses to leave a stack for another

#include "tests/model/kernels/cuda/block.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
static void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

namespace ddl::kernels::cuda_host {

Index thread_index, block_index, block_size, grid_size;

namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 256 * 1024;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  sigjmp_buf at;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  State state = State::kDone;
  unsigned index = 0;
  bool begun = false;  // ThreadBegins was called
};

// Threads of a warp meet in rounds. A thread can be one round ahead of another, not two, so two
// sets of values do.
struct Warp {
  uint64_t value[2][kWarp] = {};
  bool exchange[2][kWarp] = {};
  unsigned arrived = 0;
  unsigned round = 0;
};

uint32_t schedule = 0;
std::vector<LaunchShape>* recorded = nullptr;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::unique_ptr<unsigned char[]> shared_memory;
const std::function<void()>* kernel = nullptr;
unsigned threads = 0;
unsigned at_block = 0;
unsigned done = 0;

Fiber* current = nullptr;
sigjmp_buf scheduler;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;

// Back to the scheduler, until it resumes this fiber.
void Yield() {
  Fiber* const self = current;
  void* fake_stack = nullptr;
  if (sigsetjmp(self->at, 0) == 0) {
    __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack, scheduler_stack_bytes);
    siglongjmp(scheduler, 1);
  }
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

// A fiber lives as long as the program and runs one thread of one block after the other.
void FiberMain() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  for (;;) {
    Yield();
    (*kernel)();
    current->state = State::kDone;
    ++done;
  }
}

void Resume(Fiber& fiber) {
  current = &fiber;
  void* fake_stack = nullptr;
  if (sigsetjmp(scheduler, 0) == 0) {
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.get(), kStackBytes);
    siglongjmp(fiber.at, 1);
  }
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void StartFiber(Fiber& fiber) {
  ucontext_t context;
  DDL_CHECK(getcontext(&context) == 0, "getcontext");
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, FiberMain, 0);
  current = &fiber;
  void* fake_stack = nullptr;
  if (sigsetjmp(scheduler, 0) == 0) {
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.get(), kStackBytes);
    setcontext(&context);
  }
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

[[noreturn]] void Stuck(const char* what) {
  std::fprintf(stderr, "CUDA block (%u, %u, %u) of %u threads is stuck: %s\n", block_index.x,
               block_index.y, block_index.z, threads, what);
  std::abort();
}

std::vector<unsigned> Order(unsigned count, uint32_t salt) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (schedule == 1) std::reverse(order.begin(), order.end());
  if (schedule > 1) std::shuffle(order.begin(), order.end(), std::mt19937(schedule + salt));
  return order;
}

void RunBlock(size_t shared_bytes) {
  std::memset(shared_memory.get(), 0xff, shared_bytes);
  warps.assign(threads / kWarp, Warp());
  at_block = done = 0;
  for (unsigned t = 0; t < threads; ++t) fibers[t]->state = State::kReady;
  const std::vector<unsigned> order = Order(threads, block_index.x);
  while (done < threads) {
    bool moved = false;
    for (const unsigned t : order) {
      if (fibers[t]->state != State::kReady) continue;
      moved = true;
      thread_index.x = t;
      Resume(*fibers[t]);
    }
    if (moved) continue;
    if (at_block > 0 && done > 0) Stuck("some threads have left, others wait at a barrier");
    if (at_block > 0) Stuck("some threads wait at a barrier, others at a shuffle");
    Stuck("a shuffle that not all lanes of a warp reach");
  }
}

uint64_t MeetInWarp(bool exchange, uint64_t value, unsigned source_lane) {
  const unsigned t = current->index, lane = t % kWarp;
  Warp& warp = warps[t / kWarp];
  const unsigned set = warp.round % 2;
  warp.value[set][lane] = value;
  warp.exchange[set][lane] = exchange;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    ++warp.round;
    for (unsigned l = 0; l < kWarp; ++l) {
      if (warp.exchange[set][l] != exchange) Stuck("a shuffle meets another kind of barrier");
      Fiber& other = *fibers[t - lane + l];
      if (other.state == State::kAtWarp) other.state = State::kReady;
    }
  } else {
    current->state = State::kAtWarp;
    Yield();
  }
  return warp.value[set][source_lane % kWarp];
}

}  // namespace

void SetSchedule(uint32_t number) { schedule = number; }

void RecordLaunches(std::vector<LaunchShape>* launches) { recorded = launches; }

void RunGrid(Index blocks, unsigned block_threads, size_t shared_bytes,
             const std::function<void()>& body) {
  DDL_CHECK(blocks.x > 0 && blocks.y > 0 && blocks.z > 0, "CUDA refuses an empty grid");
  DDL_CHECK(blocks.y <= 65535 && blocks.z <= 65535, "CUDA's limit of the grid");
  DDL_CHECK(block_threads > 0 && block_threads <= 1024, "CUDA's limit of the block");
  DDL_CHECK(block_threads % kWarp == 0, "our kernels take whole warps");
  DDL_CHECK(shared_bytes <= 99 * 1024, "the least of the limits that we build for (sm_89)");
  if (recorded != nullptr) recorded->push_back({blocks, block_threads, shared_bytes});
  kernel = &body;
  threads = block_threads;
  while (fibers.size() < threads) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->index = static_cast<unsigned>(fibers.size() - 1);
    StartFiber(*fibers.back());
  }
  grid_size = blocks;
  block_size = {threads, 1, 1};
  thread_index = {};
  // A block of its own for each launch, so that AddressSanitizer sees its ends.
  shared_memory.reset(new unsigned char[shared_bytes]);
  const unsigned count = blocks.x * blocks.y * blocks.z;
  for (const unsigned b : Order(count, 0)) {
    block_index = {b % blocks.x, b / blocks.x % blocks.y, b / blocks.x / blocks.y};
    RunBlock(shared_bytes);
  }
  shared_memory.reset();
  current = nullptr;
}

void ThreadBegins() { current->begun = true; }

void CheckBegun() {
  DDL_CHECK(current->begun, "every thread of a kernel begins with BeginKernel");
  current->begun = false;
}

void BlockBarrier() {
  if (++at_block == threads) {
    at_block = 0;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t]->state == State::kAtBlock) fibers[t]->state = State::kReady;
    }
    return;
  }
  current->state = State::kAtBlock;
  Yield();
}

void WarpBarrier() { MeetInWarp(false, 0, 0); }

uint64_t WarpExchange(uint64_t value, unsigned source_lane) {
  return MeetInWarp(true, value, source_lane);
}

unsigned char* SharedMemory() { return shared_memory.get(); }

}  // namespace ddl::kernels::cuda_host
