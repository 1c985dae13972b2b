// The demo model's answers, bit for bit, by every instruction set that this machine has: what
// replicas of one release agree on, and what a change of an order of sums changes. Renewed by
//
//   DDL_RENEW_EXPECTED_BITS=1 build/release/tests/expected_bits_test
//
// which keeps what it cannot compute here. A change that needs it is a decision: it says so in its
// commit, and replicas before and after it do not agree.

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "model/checkpoint/checkpoint.h"
#include "model/kernels/instruction_set.h"
#include "model/model_runner.h"

namespace ddl {
namespace {

using Json = nlohmann::ordered_json;
using kernels::InstructionSet;

constexpr char kFile[] = "tests/data/expected_bits.json";
constexpr int32_t kBlockSize = 16;

bool IsRenewing() { return std::getenv("DDL_RENEW_EXPECTED_BITS") != nullptr; }

// Both run the same instructions, one by a portable twin.
std::string NameInFile(InstructionSet set) {
  return kernels::Name(set == InstructionSet::kAmxEmulated ? InstructionSet::kAmx : set);
}

struct Precision {
  const char* name;
  RunnerDType dtype;
  Quantization quantization;
};
constexpr Precision kPrecisions[] = {
    {"bfloat16", RunnerDType::kBFloat16, Quantization::kNone},
    {"int8", RunnerDType::kBFloat16, Quantization::kInt8},
    {"float32", RunnerDType::kFloat32, Quantization::kNone},
};

Json ReadFile() {
  std::ifstream file(kFile);
  return file ? Json::parse(file) : Json::object();
}

// "ID:BITS" of each token that greedy decoding adds, the bits those of its log-probability.
std::vector<std::string> Answer(ModelRunner& runner, const std::vector<TokenId>& prompt) {
  constexpr int kTokens = 6;
  const SamplingParams greedy = {.temperature = 0.0f};
  std::vector<TokenId> tokens = prompt;
  std::vector<int32_t> blocks(8);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::vector<std::string> answer;
  for (int i = 0; i < kTokens; ++i) {
    SequenceChunk chunk;
    chunk.tokens = tokens;
    chunk.start = i == 0 ? 0 : static_cast<int32_t>(tokens.size()) - 1;
    chunk.block_table = blocks;
    chunk.sample = SampleRequest{
        .params = &greedy,
        .vocab_size = static_cast<TokenId>(runner.description().vocab_size),
        .banned = {},
        .prompt = {},
        .generated = {},
    };
    const auto outputs = runner.Forward({&chunk, 1});
    if (!outputs.ok() || !outputs->front().sampled.has_value()) return {"failed"};
    const SampledToken& sampled = *outputs->front().sampled;
    answer.push_back(
        absl::StrFormat("%d:%08x", sampled.id, std::bit_cast<uint32_t>(sampled.logprob)));
    tokens.push_back(sampled.id);
  }
  return answer;
}

class ExpectedBitsTest : public testing::TestWithParam<InstructionSet> {};

TEST_P(ExpectedBitsTest, AreWhatThisBuildComputes) {
  // What has no tiles is computed by AVX-512 BF16 beside AMX, and beside its twin by the best here.
  const std::string why = kernels::WhyUnsupported(
      GetParam() == InstructionSet::kAmxEmulated ? InstructionSet::kAvx512Bf16 : GetParam());
  if (!why.empty()) GTEST_SKIP() << why;
  auto opened = Checkpoint::Open("models/ddl-demo");
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto checkpoint = std::make_shared<const Checkpoint>(*std::move(opened));
  Json file = ReadFile();
  Json found;
  for (const Precision& precision : kPrecisions) {
    RunnerOptions options;
    options.instruction_set = GetParam();
    options.dtype = precision.dtype;
    options.quantization = precision.quantization;
    options.kv_block_size = kBlockSize;
    options.kv_num_blocks = 8;
    options.max_sequences = 1;
    options.max_step_tokens = 64;
    options.num_threads = 1;
    auto runner = ModelRunner::Create(checkpoint, options);
    ASSERT_TRUE(runner.ok()) << runner.status();
    // A row alone, fewer than a tile of rows, and more than two.
    for (const int32_t length : {1, 5, 41}) {
      std::vector<TokenId> prompt(length);
      for (int32_t i = 0; i < length; ++i) prompt[i] = 7 + 97 * i % 4000;
      found[precision.name].push_back(Answer(**runner, prompt));
    }
  }
  const std::string name = NameInFile(GetParam());
  if (!IsRenewing()) {
    for (const Precision& precision : kPrecisions) {
      EXPECT_EQ(found[precision.name], file[name][precision.name])
          << name << ", " << precision.name << ": another order of sums? See " << kFile;
    }
    return;
  }
  if (GetParam() == InstructionSet::kAmxEmulated &&
      kernels::WhyUnsupported(InstructionSet::kAmx).empty()) {
    EXPECT_EQ(found, file[name]) << "the twin of the tiles differs from the processor's";
    return;
  }
  file["about"] =
      "What models/ddl-demo answers, by instruction set, type and prompt: ID:BITS of each token, "
      "the bits of "
      "its log-probability. tests/model/expected_bits_test.cc compares, and says how to renew.";
  file[name] = found;
  std::ofstream(kFile) << file.dump(1) << "\n";
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, ExpectedBitsTest,
                         testing::ValuesIn(kernels::AllInstructionSets()),
                         [](const auto& info) { return std::string(kernels::Name(info.param)); });

}  // namespace
}  // namespace ddl
