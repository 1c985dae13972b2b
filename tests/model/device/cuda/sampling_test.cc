// Sampling on the device, through the ModelRunner: the token and logprob that the CPU's sampler
// gives for the same logits, whatever the parameters and whoever samples in the same step.

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_runner.h"
#include "model/sampler.h"

namespace ddl {
namespace {

// What is done with the token whose logit is the largest: sampling that ignored it would show.
enum class Likeliest { kNothing, kBanned, kInPrompt, kGenerated };

struct SamplingCase {
  std::string name;
  SamplingParams params;
  Likeliest likeliest = Likeliest::kNothing;
  int32_t logprobs = -1;
  bool default_params = false;
};

const std::vector<SamplingCase>& Cases() {
  static const auto& rows = *new std::vector<SamplingCase>{
      {"greedy", {.temperature = 0.0f}},
      {"greedy, its logprob", {.temperature = 0.0f}, Likeliest::kNothing, 0},
      {"greedy, with a list", {.temperature = 0.0f}, Likeliest::kNothing, 3},  // the CPU samples
      {"defaults", {}, Likeliest::kNothing, -1, true},
      {"temperature", {.temperature = 0.7f, .seed = 5}},
      {"top_k", {.temperature = 1.3f, .top_k = 7, .seed = 6}},
      {"top_p", {.temperature = 1.5f, .top_p = 0.8f, .seed = 7}},
      {"min_p", {.temperature = 1.5f, .min_p = 0.05f, .seed = 8}},
      {"repetition", {.temperature = 0.0f, .repetition_penalty = 9.0f}, Likeliest::kInPrompt},
      {"frequency", {.temperature = 0.0f, .frequency_penalty = 2.0f}, Likeliest::kGenerated},
      {"presence", {.temperature = 0.0f, .presence_penalty = 2.0f}, Likeliest::kGenerated},
      {"a bias", {.temperature = 0.0f, .logit_bias = {{3, 50.0f}, {9, -50.0f}}}},
      {"a ban", {.temperature = 0.0f}, Likeliest::kBanned},
      {"all of it",
       {.temperature = 1.1f,
        .top_k = 40,
        .top_p = 0.95f,
        .min_p = 0.01f,
        .repetition_penalty = 1.2f,
        .frequency_penalty = 0.3f,
        .presence_penalty = -0.2f,
        .logit_bias = {{0, 2.0f}, {77, 1.0f}, {255, -3.0f}},
        .seed = 10},
       Likeliest::kBanned},
  };
  return rows;
}

// Every case is that of a sequence of its own, all in one step, after `index` other tokens.
// `likeliest` [cases]: see Likeliest.
std::vector<ChunkOutput> Step(ModelRunner& runner, uint64_t index, bool with_logits,
                              const std::vector<TokenId>& likeliest) {
  static const std::vector<TokenId> tokens = {11, 3, 250};
  std::vector<std::vector<int32_t>> blocks;
  std::vector<std::vector<TokenId>> special;  // the likeliest token, three times
  for (size_t i = 0; i < Cases().size(); ++i) {
    blocks.push_back({static_cast<int32_t>(i)});
    special.emplace_back(3, likeliest[i]);
  }
  std::vector<SequenceChunk> chunks;
  for (size_t i = 0; i < Cases().size(); ++i) {
    const SamplingCase& sampling = Cases()[i];
    SequenceChunk& chunk = chunks.emplace_back();
    // Sequences of different lengths, so that their logits differ.
    chunk.tokens = absl::MakeConstSpan(tokens).first(tokens.size() - i % 3);
    chunk.block_table = blocks[i];
    chunk.slot = static_cast<int32_t>(i);
    if (with_logits) chunk.logits = Rows::kLast;
    SampleRequest& sample = chunk.sample.emplace();
    sample.params = sampling.default_params ? nullptr : &sampling.params;
    sample.index = index;
    sample.vocab_size = static_cast<TokenId>(runner.description().vocab_size) - 2;
    if (sampling.likeliest == Likeliest::kBanned) sample.banned = special[i];
    sample.prompt = sampling.likeliest == Likeliest::kInPrompt ? special[i] : chunk.tokens;
    if (sampling.likeliest == Likeliest::kGenerated) sample.generated = special[i];
    sample.logprobs = sampling.logprobs;
  }
  auto outputs = runner.Forward(chunks);
  EXPECT_TRUE(outputs.ok()) << outputs.status();
  return outputs.ok() ? *std::move(outputs) : std::vector<ChunkOutput>(chunks.size());
}

TEST(CudaSamplingTest, IsThatOfTheCpu) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open("tests/data/goldens/ccec_base");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  RunnerOptions options;
  options.device = RunnerDevice::kCuda;
  options.kv_num_blocks = static_cast<int32_t>(Cases().size());
  options.max_sequences = static_cast<int32_t>(Cases().size());
  options.max_step_tokens = 256;
  options.num_threads = 1;
  const auto runner =
      ModelRunner::Create(std::make_shared<const Checkpoint>(*std::move(checkpoint)), options);
  ASSERT_TRUE(runner.ok()) << runner.status();
  std::vector<TokenId> likeliest(Cases().size(), 0);
  const std::vector<ChunkOutput> plain = Step(**runner, 0, true, likeliest);
  for (size_t i = 0; i < plain.size(); ++i) {
    const std::vector<float>& logits = plain[i].logits;
    likeliest[i] =
        static_cast<TokenId>(std::max_element(logits.begin(), logits.end() - 2) - logits.begin());
  }
  for (uint64_t index = 0; index < 2; ++index) {
    // Whose logits are asked for, the CPU samples.
    const std::vector<ChunkOutput> by_cpu = Step(**runner, index, true, likeliest);
    const std::vector<ChunkOutput> by_device = Step(**runner, index, false, likeliest);
    for (size_t i = 0; i < Cases().size(); ++i) {
      const SamplingCase& sampling = Cases()[i];
      const std::string what = sampling.name + ", token " + std::to_string(index);
      EXPECT_EQ(by_cpu[i].logits.size(), (*runner)->description().vocab_size) << what;
      EXPECT_TRUE(by_device[i].logits.empty()) << what;
      ASSERT_TRUE(by_cpu[i].sampled.has_value() && by_device[i].sampled.has_value()) << what;
      EXPECT_EQ(by_device[i].sampled->id, by_cpu[i].sampled->id) << what;
      EXPECT_NEAR(by_device[i].sampled->logprob, by_cpu[i].sampled->logprob, 2e-5) << what;
      EXPECT_EQ(by_device[i].sampled->top.size(), by_cpu[i].sampled->top.size()) << what;
      if (sampling.likeliest != Likeliest::kNothing) {
        EXPECT_NE(by_device[i].sampled->id, likeliest[i]) << what << ": the row tests nothing";
      }
    }
  }
}

}  // namespace
}  // namespace ddl
