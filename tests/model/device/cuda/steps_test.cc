// Steps of a model on a GPU, or on its twin: those that a GPU takes another way than the CPU, and
// what repeating one must not change.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_runner.h"
#include "tests/model/device/tested_device.h"

namespace ddl {
namespace {

constexpr int32_t kBlockSize = 16;

std::unique_ptr<ModelRunner> Open(const std::string& name, int32_t kv_num_blocks,
                                  int32_t max_sequences = 4,
                                  RunnerDType dtype = RunnerDType::kFloat32,
                                  bool batch_invariant = false) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open("tests/data/goldens/" + name);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  RunnerOptions options;
  options.device = TestedDevice();
  options.dtype = dtype;
  options.batch_invariant = batch_invariant;
  options.kv_block_size = kBlockSize;
  options.kv_num_blocks = kv_num_blocks;
  options.max_sequences = max_sequences;
  options.max_step_tokens = 64;
  options.max_context_length = 128;
  if (IsEmulated()) options.gpu_memory_fraction = 0.01;
  options.num_threads = 1;
  auto runner =
      ModelRunner::Create(std::make_shared<const Checkpoint>(*std::move(checkpoint)), options);
  EXPECT_TRUE(runner.ok()) << runner.status();
  return runner.ok() ? *std::move(runner) : nullptr;
}

std::vector<TokenId> Tokens(const ModelRunner& runner, int count) {
  std::vector<TokenId> tokens(count);
  for (int i = 0; i < count; ++i) {
    tokens[i] = static_cast<TokenId>((i * 37 + 11) % runner.description().vocab_size);
  }
  return tokens;
}

// A chunk of a sequence whose first blocks are `blocks`; with the logits of its last position.
SequenceChunk Chunk(absl::Span<const TokenId> tokens, int32_t start,
                    absl::Span<const int32_t> blocks, int32_t slot = 0) {
  SequenceChunk chunk;
  chunk.tokens = tokens;
  chunk.start = start;
  chunk.block_table = blocks;
  chunk.slot = slot;
  chunk.logits = Rows::kLast;
  return chunk;
}

std::vector<float> Logits(ModelRunner& runner, const SequenceChunk& chunk) {
  auto outputs = runner.Forward({&chunk, 1});
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  return outputs.ok() ? outputs->front().logits : std::vector<float>();
}

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0.0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return largest;
}

// The first part of a prompt that does not fit into a step: no row of it is wanted, and without
// convolutions over tokens the last layer has no row at all.
TEST(CudaStepsTest, ChunkOfWhichNoRowIsWanted) {
  for (const std::string model : {"gpt_base", "vdim1_base", "cc_base", "ccec_base", "tcec_base"}) {
    const auto runner = Open(model, 8);
    ASSERT_NE(runner, nullptr);
    const std::vector<TokenId> tokens = Tokens(*runner, 20);
    const std::vector<int32_t> blocks = {5, 1};
    const std::vector<float> whole = Logits(*runner, Chunk(tokens, 0, blocks));
    for (const int part : {1, 4, 16}) {
      const std::string what = model + ", first " + std::to_string(part);
      SequenceChunk first = Chunk(absl::MakeConstSpan(tokens).first(part), 0, blocks, 1);
      first.logits = Rows::kNone;
      const auto outputs = runner->Forward({&first, 1});
      ASSERT_TRUE(outputs.ok()) << what << ": " << outputs.status();
      const std::vector<float> rest = Logits(*runner, Chunk(tokens, part, blocks, 1));
      EXPECT_LT(LargestDifference(rest, whole), 1e-3) << what;
    }
  }
}

// Without a given number of blocks the largest steps run once, and their graph goes, before the
// cache is made. A decode after that is a graph's.
TEST(CudaStepsTest, DecodesComeFromGraphsAfterMemoryWasFilled) {
  const auto runner = Open("ccec_base", 0);
  ASSERT_NE(runner, nullptr);
  const std::vector<TokenId> tokens = Tokens(*runner, 7);
  const std::vector<int32_t> blocks = {runner->description().kv_num_blocks - 1};
  Logits(*runner, Chunk(absl::MakeConstSpan(tokens).first(4), 0, blocks));
  const int64_t before = runner->graph_replays();
  for (int length = 5; length <= 7; ++length) {
    Logits(*runner, Chunk(absl::MakeConstSpan(tokens).first(length), length - 1, blocks));
  }
  EXPECT_EQ(runner->graph_replays() - before, 3);
}

// Rounded, likely tokens would have equal logits, and logprobs steps of 1/16.
TEST(CudaStepsTest, LogitsAreNotRoundedToBFloat16) {
  const auto runner = Open("ccec_base", 8, 4, RunnerDType::kBFloat16);
  ASSERT_NE(runner, nullptr);
  const std::vector<TokenId> tokens = Tokens(*runner, 3);
  const std::vector<int32_t> blocks = {0};
  int rounded = 0;
  const std::vector<float> logits = Logits(*runner, Chunk(tokens, 0, blocks));
  for (const float logit : logits) {
    uint32_t bits;
    std::memcpy(&bits, &logit, sizeof(bits));
    rounded += (bits & 0xffff) == 0;
  }
  EXPECT_LT(rounded, static_cast<int>(logits.size()) / 8);
}

TEST(CudaStepsTest, RepeatedDecodeGivesTheSameBits) {
  const int repeats = IsEmulated() ? 3 : 200;
  for (const std::string model : {"gpt_base", "ccec_base", "tcec_v_shift"}) {
    const auto runner = Open(model, 16);
    ASSERT_NE(runner, nullptr);
    const std::vector<TokenId> tokens = Tokens(*runner, 100);
    const std::vector<std::vector<int32_t>> blocks = {
        {0, 2, 4, 6, 8, 10, 12}, {1, 3, 5, 7, 9, 11, 13}, {14}};
    const std::vector<int> lengths = {100, 65, 2};
    std::vector<std::vector<float>> want;
    for (int repeat = 0; repeat < repeats; ++repeat) {
      // Prefilled again each time: a decode of TC moves its tails on.
      std::vector<SequenceChunk> decodes;
      for (int32_t slot = 0; slot < 3; ++slot) {
        const auto sequence = absl::MakeConstSpan(tokens).first(lengths[slot]);
        for (int start = 0; start < lengths[slot] - 1; start += 64) {
          const int end = std::min(start + 64, lengths[slot] - 1);
          SequenceChunk chunk = Chunk(sequence.first(end), start, blocks[slot], slot);
          chunk.logits = Rows::kNone;
          ASSERT_TRUE(runner->Forward({&chunk, 1}).ok());
        }
        decodes.push_back(Chunk(sequence, lengths[slot] - 1, blocks[slot], slot));
      }
      const auto outputs = runner->Forward(decodes);
      ASSERT_TRUE(outputs.ok()) << outputs.status();
      for (size_t i = 0; i < outputs->size(); ++i) {
        if (repeat == 0) want.push_back((*outputs)[i].logits);
        ASSERT_EQ((*outputs)[i].logits, want[i]) << model << ", sequence " << i << ", " << repeat;
      }
    }
  }
}

// Offsets of a cache of the size that a GPU's memory gives do not fit into 32 bits.
TEST(CudaStepsTest, FirstAndLastBlockOfALargeCacheAreAlike) {
  const int32_t num_blocks = IsEmulated() ? 200 : 200'000;
  const auto runner = Open("tcec_base", num_blocks);
  ASSERT_NE(runner, nullptr);
  const std::vector<TokenId> tokens = Tokens(*runner, 40);
  const std::vector<int32_t> first = {0, 1, 2};
  const std::vector<int32_t> last = {num_blocks - 1, num_blocks - 2, num_blocks - 3};
  std::vector<std::vector<float>> logits;
  for (const std::vector<int32_t>& blocks : {first, last}) {
    logits.push_back(Logits(*runner, Chunk(absl::MakeConstSpan(tokens).first(39), 0, blocks)));
    logits.push_back(Logits(*runner, Chunk(tokens, 39, blocks)));
  }
  EXPECT_EQ(logits[0], logits[2]);
  EXPECT_EQ(logits[1], logits[3]);
}

// One sequence decoded beside 0, 1, 3 ... 63 others, which a product may sum otherwise.
void DecodeBesideOthers(RunnerDType dtype, bool batch_invariant) {
  const int most = IsEmulated() ? 4 : 64;
  const auto runner = Open("ccec_base", 2 * most, most, dtype, batch_invariant);
  ASSERT_NE(runner, nullptr);
  if (batch_invariant) {
    ASSERT_EQ(runner->description().batch_dependence, "");
  }
  const std::vector<TokenId> tokens = Tokens(*runner, 20);
  std::vector<std::vector<int32_t>> blocks;
  for (int32_t slot = 0; slot < most; ++slot) {
    blocks.push_back({2 * slot, 2 * slot + 1});
    SequenceChunk prompt = Chunk(absl::MakeConstSpan(tokens).first(19), 0, blocks[slot], slot);
    prompt.logits = Rows::kNone;
    ASSERT_TRUE(runner->Forward({&prompt, 1}).ok());
  }
  std::vector<float> alone;
  for (int rows = 1; rows <= most; rows *= 2) {
    std::vector<SequenceChunk> chunks;
    for (int32_t slot = 0; slot < rows; ++slot)
      chunks.push_back(Chunk(tokens, 19, blocks[slot], slot));
    const auto outputs = runner->Forward(chunks);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    if (rows == 1) alone = outputs->front().logits;
    const double difference = LargestDifference(outputs->front().logits, alone);
    std::printf("%s: logits beside %d others differ by %g at most\n",
                dtype == RunnerDType::kFloat32 ? "float32" : "bfloat16", rows - 1, difference);
    EXPECT_LE(difference, batch_invariant                  ? 0.0
                          : dtype == RunnerDType::kFloat32 ? 1e-3
                                                           : 0.5)
        << rows;
  }
}

TEST(CudaStepsTest, LogitsBesideOthers) {
  for (const RunnerDType dtype : {RunnerDType::kFloat32, RunnerDType::kBFloat16}) {
    DecodeBesideOthers(dtype, false);
  }
}

TEST(CudaStepsTest, BatchInvariantDecodes) {
  for (const RunnerDType dtype : {RunnerDType::kFloat32, RunnerDType::kBFloat16}) {
    DecodeBesideOthers(dtype, true);
  }
}

// A prompt whole, in chunks, and beside another sequence.
TEST(CudaStepsTest, BatchInvariantPrompts) {
  for (const std::string model : {"ccec_base", "tcec_v_shift"}) {
    const auto runner = Open(model, 32, 4, RunnerDType::kBFloat16, true);
    ASSERT_NE(runner, nullptr);
    ASSERT_EQ(runner->description().batch_dependence, "");
    const std::vector<TokenId> tokens = Tokens(*runner, 21), others = Tokens(*runner, 9);
    const std::vector<int32_t> blocks = {5, 1}, other_blocks = {8};
    const std::vector<float> whole = Logits(*runner, Chunk(tokens, 0, blocks));
    for (const int part : {1, 8}) {
      for (int begin = 0; begin < 21; begin += part) {
        const int end = std::min(begin + part, 21);
        SequenceChunk chunk = Chunk(absl::MakeConstSpan(tokens).first(end), begin, blocks, 1);
        if (end == 21) {
          EXPECT_EQ(Logits(*runner, chunk), whole) << model << ", in chunks of " << part;
        } else {
          chunk.logits = Rows::kNone;
          ASSERT_TRUE(runner->Forward({&chunk, 1}).ok());
        }
      }
    }
    const std::vector<SequenceChunk> beside = {Chunk(others, 0, other_blocks, 2),
                                               Chunk(tokens, 0, blocks, 1)};
    const auto outputs = runner->Forward(beside);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    EXPECT_EQ((*outputs)[1].logits, whole) << model << ", beside another";
  }
}

}  // namespace
}  // namespace ddl
