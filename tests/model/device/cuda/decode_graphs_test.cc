// Decode steps from graphs, through the ModelRunner: the bits of steps that are launched kernel by
// kernel, whoever decodes, and no launch that a captured graph could not repeat.

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/model_runner.h"
#include "tests/model/device/cuda/golden_on_cuda.h"
#include "tests/model/device/cuda/runtime_on_host.h"

namespace ddl {
namespace {

constexpr int32_t kMaxSequences = 6;
constexpr GoldenShape kShape = {
    .block_size = 16, .blocks = 20, .sequences = kMaxSequences, .max_step_tokens = 256};

// What a step does: the sequences (by slot) that decode, and those that compute `rows` positions
// instead.
struct Step {
  std::string name;
  std::vector<int32_t> decode;
  std::vector<int32_t> prefill;
  int32_t rows = 0;
  int replays = 0;   // with graphs: of this step
  int captures = 0;  // likewise
  bool state = false, stats = false;
};

class CudaDecodeGraphsTest : public testing::Test {
 protected:
  // The twin's flash attention is the quicker one for the long prompt.
  CudaDecodeGraphsTest() { cuda_runtime::on_host.flash_attention = true; }
  ~CudaDecodeGraphsTest() override { cuda_runtime::on_host = {}; }

  // Compares the steps by graphs with the same launched kernel by kernel.
  static void ExpectSameBits(const std::string& model, const std::vector<Step>& steps,
                             const GoldenShape& shape);
};

// The logits of the last position of each chunk of each step. Every sequence owns a sixth of all
// blocks, so that none is nobody's.
std::vector<std::vector<float>> LogitsOf(ModelRunner& runner, const std::vector<Step>& steps,
                                         const GoldenShape& shape, bool with_graphs) {
  const auto vocab_size = static_cast<int32_t>(runner.description().vocab_size);
  std::vector<std::vector<TokenId>> tokens(kMaxSequences);
  std::vector<std::vector<int32_t>> blocks(kMaxSequences);
  for (int32_t n = 0; n < shape.blocks * kMaxSequences; ++n) {
    blocks[n * 5 % kMaxSequences].push_back(n);
  }
  std::vector<std::vector<float>> logits;
  for (const Step& step : steps) {
    std::vector<SequenceChunk> chunks;
    const auto add = [&](int32_t slot, int32_t rows) {
      std::vector<TokenId>& all = tokens[slot];
      const auto start = static_cast<int32_t>(all.size());
      for (int32_t i = 0; i < rows; ++i) {
        // Not the token of spare rows, whose K and V could take its place unnoticed.
        all.push_back((slot * 31 + static_cast<int32_t>(all.size()) * 7) % (vocab_size - 1) + 1);
      }
      SequenceChunk& chunk = chunks.emplace_back();
      chunk.tokens = all;
      chunk.start = start;
      chunk.block_table = absl::MakeConstSpan(blocks[slot])
                              .first((all.size() + shape.block_size - 1) / shape.block_size);
      chunk.slot = slot;
      chunk.logits = Rows::kLast;
      chunk.ddl_stats = step.stats;
      if (step.state) chunk.state_layer = 0;
    };
    for (const int32_t slot : step.decode) add(slot, 1);
    for (const int32_t slot : step.prefill) add(slot, step.rows);
    const int captures = cuda_runtime::on_host.captures, replays = cuda_runtime::on_host.replays;
    const auto outputs = runner.Forward(chunks);
    EXPECT_TRUE(outputs.ok()) << step.name << ": " << outputs.status();
    if (!outputs.ok()) return {};
    EXPECT_EQ(cuda_runtime::on_host.captures - captures, with_graphs ? step.captures : 0)
        << step.name;
    EXPECT_EQ(cuda_runtime::on_host.replays - replays, with_graphs ? step.replays : 0) << step.name;
    for (const ChunkOutput& output : *outputs) logits.push_back(output.logits);
  }
  return logits;
}

const std::vector<Step>& Steps() {
  static const auto& steps = *new std::vector<Step>{
      {"prompts", {}, {0, 1, 2, 3, 4, 5}, 5},
      {"one", {2}, {}, 0, 1, 1},
      {"one, another", {0}, {}, 0, 1},
      {"two", {4, 1}, {}, 0, 1, 1},
      {"three in a graph of four", {5, 0, 3}, {}, 0, 1, 1},
      {"four", {5, 0, 3, 1}, {}, 0, 1},
      {"three again", {1, 2, 4}, {}, 0, 1},
      {"five in the largest graph", {0, 1, 2, 3, 4}, {}, 0, 1, 1},
      {"all", {5, 4, 3, 2, 1, 0}, {}, 0, 1},
      {"beside a prompt", {0, 1}, {2}, 7},
      {"states are wanted", {0, 1}, {}, 0, 0, 0, true, false},
      {"statistics are wanted", {0, 1}, {}, 0, 0, 0, false, true},
      {"a long prompt", {}, {3}, 245},
      {"before a split ends", {3, 0}, {}, 0, 1},
      {"", {3, 0}, {}, 0, 1},
      {"", {3}, {}, 0, 1},
      {"", {3, 1, 2}, {}, 0, 1},
      {"", {3}, {}, 0, 1},
      {"past its end", {3, 2}, {}, 0, 1},
  };
  return steps;
}

void CudaDecodeGraphsTest::ExpectSameBits(const std::string& model, const std::vector<Step>& steps,
                                          const GoldenShape& shape) {
  const auto by_graphs = OpenGoldenOnCuda(model, shape);
  const std::vector<std::vector<float>> found = LogitsOf(*by_graphs, steps, shape, true);
  cuda_runtime::on_host.capture_error = "no graphs here";
  const auto by_launches = OpenGoldenOnCuda(model, shape);
  const std::vector<std::vector<float>> want = LogitsOf(*by_launches, steps, shape, false);
  cuda_runtime::on_host.capture_error.clear();
  ASSERT_EQ(found.size(), want.size()) << model;
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_FALSE(found[i].empty()) << model;
    EXPECT_EQ(found[i], want[i]) << model << ", chunk " << i << " of all";
  }
}

TEST_F(CudaDecodeGraphsTest, ChangeNoBit) {
  // Additive, over channels, over tokens with all kinds of tails.
  for (const std::string model : {"gpt_base", "ccec_base", "tcec_v_shift"}) {
    ExpectSameBits(model, Steps(), kShape);
  }
}

// Graphs of the same rows for contexts of up to 32 blocks, and of more: as many as there can be.
TEST_F(CudaDecodeGraphsTest, LongerContextsHaveGraphsOfTheirOwn) {
  const std::vector<Step> steps = {
      {"prompts", {}, {0, 1}, 127},
      {"the last position of 32 blocks", {0, 1}, {}, 0, 1, 1},
      {"the first of the 33rd", {0, 1}, {}, 0, 1, 1},
      {"short beside long", {0}, {2}, 3},
      {"short alone", {2}, {}, 0, 1, 1},
      {"long again", {1, 0}, {}, 0, 1},
      {"long alone", {0}, {}, 0, 1, 1},
  };
  ExpectSameBits(
      "ccec_base", steps,
      {.block_size = 4, .blocks = 40, .sequences = kMaxSequences, .max_step_tokens = 256});
}

TEST_F(CudaDecodeGraphsTest, AreCapturedWhileLoading) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open("tests/data/goldens/tcec_base");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  RunnerOptions options;
  options.device = RunnerDevice::kCuda;
  options.kv_num_blocks = 8;
  options.max_sequences = 5;
  options.max_context_length = 64;
  options.num_threads = 1;
  options.capture_graphs = true;
  const auto runner =
      ModelRunner::Create(std::make_shared<const Checkpoint>(*std::move(checkpoint)), options);
  ASSERT_TRUE(runner.ok()) << runner.status();
  EXPECT_EQ(cuda_runtime::on_host.captures, 4);  // of 1, 2, 4 and 5 rows
  const std::vector<TokenId> tokens = {5};
  std::vector<std::vector<int32_t>> blocks;
  std::vector<SequenceChunk> chunks(5);
  for (int32_t slot = 0; slot < 5; ++slot) blocks.push_back({slot});
  for (int32_t slot = 0; slot < 5; ++slot) {
    chunks[slot].tokens = tokens;
    chunks[slot].block_table = blocks[slot];
    chunks[slot].slot = slot;
  }
  for (const size_t rows : {1, 2, 3, 4, 5}) {
    ASSERT_TRUE((*runner)->Forward(absl::MakeConstSpan(chunks).first(rows)).ok());
  }
  EXPECT_EQ(cuda_runtime::on_host.captures, 4);
}

// A replay that fails, fails its step; the next one runs.
TEST_F(CudaDecodeGraphsTest, FailedReplayFailsItsStepAlone) {
  const auto runner = OpenGoldenOnCuda("ccec_base", kShape);
  const std::vector<TokenId> tokens = {5};
  const std::vector<int32_t> blocks = {0};
  SequenceChunk chunk;
  chunk.tokens = tokens;
  chunk.block_table = blocks;
  ASSERT_TRUE(runner->Forward({&chunk, 1}).ok());
  ASSERT_EQ(cuda_runtime::on_host.replays, 1);
  cuda_runtime::on_host.stream_error = "launch failed";
  EXPECT_EQ(runner->Forward({&chunk, 1}).status().code(), absl::StatusCode::kInternal);
  cuda_runtime::on_host.stream_error.clear();
  EXPECT_TRUE(runner->Forward({&chunk, 1}).ok());
  EXPECT_EQ(cuda_runtime::on_host.captures, 1);
}

}  // namespace
}  // namespace ddl
