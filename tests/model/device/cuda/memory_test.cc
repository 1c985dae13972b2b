// What a GPU's memory and its errors do to a ModelRunner, with a device whose memory and health the
// test decides.

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_runner.h"
#include "tests/model/device/cuda/runtime_on_host.h"

namespace ddl {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

std::shared_ptr<const Checkpoint> Open(const std::string& name) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open("tests/data/goldens/" + name);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return std::make_shared<const Checkpoint>(*std::move(checkpoint));
}

RunnerOptions OnGpu(int32_t kv_num_blocks) {
  RunnerOptions options;
  options.device = RunnerDevice::kCuda;
  options.kv_block_size = 4;
  options.kv_num_blocks = kv_num_blocks;
  options.max_sequences = 3;
  options.max_step_tokens = 8;
  options.max_context_length = 32;
  options.num_threads = 1;
  return options;
}

class CudaMemoryTest : public testing::Test {
 protected:
  ~CudaMemoryTest() override { cuda_runtime::on_host = {}; }
};

TEST_F(CudaMemoryTest, CacheTakesWhatTheFractionLeaves) {
  struct Row {
    std::string name;
    int64_t free_bytes, total_bytes;
    double fraction;
    int64_t budget_bytes;  // < 0: refused
  };
  const std::vector<Row> rows = {
      {"all free, half", 16 * kMiB, 16 * kMiB, 0.5, 8 * kMiB},
      {"some in use", 12 * kMiB, 16 * kMiB, 0.5, 4 * kMiB},
      {"all of it", 12 * kMiB, 16 * kMiB, 1.0, 12 * kMiB},
      {"in use up to the limit", 8 * kMiB, 16 * kMiB, 0.5, -1},
      {"in use past the limit", 4 * kMiB, 16 * kMiB, 0.5, -1},
  };
  // K/V alone, and with tails by block.
  for (const std::string model : {"ccec_base", "tcec_base"}) {
    const std::shared_ptr<const Checkpoint> checkpoint = Open(model);
    for (const Row& row : rows) {
      const std::string what = model + ": " + row.name;
      cuda_runtime::on_host.memory = {.free_bytes = row.free_bytes, .total_bytes = row.total_bytes};
      RunnerOptions options = OnGpu(0);
      options.gpu_memory_fraction = row.fraction;
      const auto runner = ModelRunner::Create(checkpoint, options);
      if (row.budget_bytes < 0) {
        EXPECT_EQ(runner.status().code(), absl::StatusCode::kResourceExhausted) << what;
        EXPECT_NE(runner.status().message().find("16 MiB"), absl::string_view::npos)
            << runner.status();
        continue;
      }
      ASSERT_TRUE(runner.ok()) << what << ": " << runner.status();
      const ModelDescription& description = (*runner)->description();
      EXPECT_EQ(description.kv_num_blocks,
                row.budget_bytes / (4 * KvBytesPerToken(*checkpoint, options.dtype, 4)))
          << what;
    }
  }
}

TEST_F(CudaMemoryTest, NumberOfBlocksThatIsGivenIsTaken) {
  const auto runner = ModelRunner::Create(Open("ccec_base"), OnGpu(7));
  ASSERT_TRUE(runner.ok()) << runner.status();
  EXPECT_EQ((*runner)->description().kv_num_blocks, 7);
  EXPECT_EQ((*runner)->description().device, "cuda:0");
}

// The last block can be written and read: the caches are as large as the description says.
TEST_F(CudaMemoryTest, EveryBlockOfTheCacheIsThere) {
  cuda_runtime::on_host.memory = {.free_bytes = kMiB, .total_bytes = kMiB};
  const std::shared_ptr<const Checkpoint> checkpoint = Open("tcec_base");
  RunnerOptions options = OnGpu(0);
  const auto runner = ModelRunner::Create(checkpoint, options);
  ASSERT_TRUE(runner.ok()) << runner.status();
  const int32_t last = (*runner)->description().kv_num_blocks - 1;
  ASSERT_GT(last, 1);
  const std::vector<TokenId> tokens = {3, 1, 4, 1, 5};
  std::vector<std::vector<float>> logits;
  for (const std::vector<int32_t>& blocks : {std::vector<int32_t>{0, 1}, {last - 1, last}}) {
    SequenceChunk chunk;
    chunk.tokens = tokens;
    chunk.block_table = blocks;
    chunk.logits = Rows::kLast;
    const auto outputs = (*runner)->Forward({&chunk, 1});
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    logits.push_back(outputs->front().logits);
  }
  EXPECT_EQ(logits[0], logits[1]);
}

// An exception of a device that works fails the step; of one that does not, everything.
TEST_F(CudaMemoryTest, LostDeviceIsUnavailable) {
  const auto runner = ModelRunner::Create(Open("ccec_base"), OnGpu(7));
  ASSERT_TRUE(runner.ok()) << runner.status();
  const std::vector<TokenId> tokens = {3, 1, 4};
  const std::vector<int32_t> blocks = {0};
  SequenceChunk chunk;
  chunk.tokens = tokens;
  chunk.block_table = blocks;
  cuda_runtime::on_host.stream_error = "launch failed";
  EXPECT_EQ((*runner)->Forward({&chunk, 1}).status().code(), absl::StatusCode::kInternal);
  cuda_runtime::on_host.stream_error.clear();
  EXPECT_TRUE((*runner)->Forward({&chunk, 1}).ok());
  cuda_runtime::on_host.stream_error = "illegal address";
  cuda_runtime::on_host.health = absl::UnavailableError("an illegal memory access");
  const absl::Status lost = (*runner)->Forward({&chunk, 1}).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(lost.message(), "cuda:0 failed and is lost: an illegal memory access");
}

}  // namespace
}  // namespace ddl
