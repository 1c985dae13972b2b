// The memory of captured graphs, by LibTorch's real allocator over a CUDA runtime that does nothing
// (stub_cuda_runtime.cc): needs no GPU.

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/util/Exception.h>

#include <memory>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "model/device/cuda/runtime.h"

// Of libc10_cuda.so, for libtorch_cuda.so alone: no header declares it.
namespace c10::cuda::_internal {
void setHasPrimaryContext(bool (*has_primary_context)(c10::DeviceIndex));
}  // namespace c10::cuda::_internal

namespace ddl::cuda_runtime {
namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;

constexpr size_t kBytes = size_t{3} << 20;

class GraphPoolTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    allocator::init(1);
    // As libtorch_cuda.so does when it is loaded.
    c10::cuda::_internal::setHasPrimaryContext([](c10::DeviceIndex) { return true; });
  }

  // A graph whose launches work in memory that they give back, and where that was in the capture.
  std::unique_ptr<Graph> CaptureOne() {
    return Capture([this] { last_ = allocator::get()->allocate(kBytes).get(); });
  }

  const void* last_ = nullptr;
};

// A server without --kv_cache_memory captures a decode to see what memory it takes, drops it, and
// captures again in traffic.
TEST_F(GraphPoolTest, CapturesAfterAllGraphsAreGone) {
  for (int round = 0; round < 3; ++round) {
    std::vector<std::unique_ptr<Graph>> graphs;
    for (int i = 0; i < 2; ++i) ASSERT_NO_THROW(graphs.push_back(CaptureOne())) << round;
    for (const auto& graph : graphs) EXPECT_NO_THROW(graph->Replay()) << round;
  }
}

TEST_F(GraphPoolTest, CapturesAfterACaptureHasFailed) {
  for (int round = 0; round < 3; ++round) {
    int calls = 0;
    EXPECT_THROW(Capture([&] { TORCH_CHECK(++calls < 2, "the second call fails"); }), c10::Error);
    ASSERT_NO_THROW(CaptureOne()) << round;
  }
}

// They run one after the other, so that one graph's memory serves all.
TEST_F(GraphPoolTest, GraphsShareTheirMemory) {
  std::vector<std::unique_ptr<Graph>> graphs;
  std::set<const void*> memory;
  for (int i = 0; i < 4; ++i) {
    graphs.push_back(CaptureOne());
    memory.insert(last_);
  }
  EXPECT_EQ(memory.size(), 1u);
  // Nobody else gets it, as long as a graph may write to it.
  const c10::DataPtr other = allocator::get()->allocate(kBytes);
  EXPECT_EQ(memory.count(other.get()), 0u);
}

}  // namespace
}  // namespace ddl::cuda_runtime
