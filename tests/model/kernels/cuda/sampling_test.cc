// SampleTokens against the CPU's sampler: the same token for the same logits, seed and index.

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/device/cuda/sample_row.h"
#include "model/kernels/cpu/cpu_kernels.h"
#include "model/kernels/cuda/cuda_kernels.h"
#include "model/sampler.h"
#include "tests/model/kernels/cuda/engine.h"
#include "tests/model/kernels/cuda/memory.h"
#include "tests/model/kernels/cuda/session.h"

namespace ddl::kernels {
namespace {

struct SamplingCase {
  std::string name;
  SamplingParams params = {};
  TokenId vocab_size = 1 << 30;
  std::vector<TokenId> banned = {}, prompt = {}, generated = {};
  std::vector<float> logits = {};
  uint64_t index = 0;
};

struct Sampled {
  std::vector<int32_t> id;
  std::vector<float> logprob;
};

class CudaSamplingTest : public testing::TestWithParam<Engine> {
 protected:
  // All cases in one call; they have one vocabulary.
  Sampled OnDevice(const std::vector<SamplingCase>& cases) const {
    cuda::ChooseSchedule(GetParam().schedule);
    CudaSession session;
    const size_t vocab = cases.front().logits.size();
    std::vector<float> logits;
    std::vector<cuda::SampleRow> rows;
    for (const SamplingCase& sampling : cases) {
      logits.insert(logits.end(), sampling.logits.begin(), sampling.logits.end());
      const SamplingParams& params = sampling.params;
      cuda::SampleRow row = SampleRowOf(params, sampling.index,
                                        std::min(sampling.vocab_size, static_cast<TokenId>(vocab)));
      std::vector<cuda::SampleBias> bias;
      for (const LogitBias& entry : params.logit_bias) bias.push_back({entry.id, entry.bias});
      const auto array = [&](const auto& values, auto*& pointer, int32_t& count) {
        count = static_cast<int32_t>(values.size());
        pointer = values.empty()
                      ? nullptr
                      : session.In(values.data(), values.size() * sizeof(values.front()));
      };
      array(bias, row.bias, row.bias_count);
      array(sampling.banned, row.banned, row.banned_count);
      array(sampling.prompt, row.prompt, row.prompt_count);
      array(sampling.generated, row.generated, row.generated_count);
      rows.push_back(row);
    }
    const auto count = static_cast<int64_t>(cases.size());
    Sampled sampled{std::vector<int32_t>(cases.size(), -7), std::vector<float>(cases.size(), NAN)};
    const std::vector<unsigned char> workspace(
        cuda::SampleWorkspaceBytes(count, static_cast<int64_t>(vocab)), 0xff);
    cuda::SampleTokensArgs args;
    args.vocab = static_cast<int64_t>(vocab);
    args.logits = session.In(logits.data(), logits.size() * sizeof(float));
    args.rows = session.In(rows.data(), rows.size() * sizeof(cuda::SampleRow));
    args.workspace = session.In(const_cast<unsigned char*>(workspace.data()), workspace.size());
    args.id = session.InOut(sampled.id.data(), sampled.id.size() * 4);
    args.logprob = session.InOut(sampled.logprob.data(), sampled.logprob.size() * 4);
    EXPECT_EQ(cuda::SampleTokens(nullptr, count, args), cuda::kSuccess);
    session.CopyBack();
    return sampled;
  }

  void ExpectEqualToCpu(const std::vector<SamplingCase>& cases) const {
    const auto cpu = MakeCpuKernels(BestInstructionSet(), {});
    const Sampled sampled = OnDevice(cases);
    for (size_t n = 0; n < cases.size(); ++n) {
      SampleRequest request;
      request.params = &cases[n].params;
      request.index = cases[n].index;
      request.vocab_size = cases[n].vocab_size;
      request.banned = cases[n].banned;
      request.prompt = cases[n].prompt;
      request.generated = cases[n].generated;
      const SampledToken want = Sample(*cpu, cases[n].logits, request);
      ASSERT_EQ(sampled.id[n], want.id) << cases[n].name << ", vocabulary "
                                        << cases[n].logits.size() << ", index " << cases[n].index;
      ASSERT_NEAR(sampled.logprob[n], want.logprob, 2e-5 * (1.0 + std::abs(want.logprob)))
          << cases[n].name;
    }
  }

  Random random_;
};

// Each row of the table, with logits of several shapes.
TEST_P(CudaSamplingTest, SamplesWhatTheCpuSamples) {
  const float kMax = std::numeric_limits<float>::max();
  std::vector<SamplingCase> table;
  const auto add = [&](const std::string& name, const SamplingParams& params,
                       TokenId vocab_size = 1 << 30, std::vector<TokenId> banned = {},
                       std::vector<TokenId> prompt = {}, std::vector<TokenId> generated = {}) {
    SamplingCase sampling;
    sampling.name = name;
    sampling.params = params;
    sampling.vocab_size = vocab_size;
    sampling.banned = banned;
    sampling.prompt = prompt;
    sampling.generated = generated;
    table.push_back(sampling);
  };
  add("greedy", {.temperature = 0.0f});
  add("plain", {});
  add("cool", {.temperature = 0.3f});
  add("hot", {.temperature = 2.0f});
  add("a temperature whose inverse overflows", {.temperature = 1e-45f});
  add("top_k 1", {.top_k = 1});
  add("top_k 5", {.top_k = 5});
  add("top_k, all and more", {.top_k = 1 << 30});
  add("top_k past a chunk", {.temperature = 2.0f, .top_k = 1100});
  add("top_p", {.top_p = 0.9f});
  add("small top_p", {.top_p = 0.01f});
  add("top_p past a chunk", {.temperature = 2.0f, .top_p = 0.995f});
  add("top_p past a chunk, min_p", {.temperature = 2.0f, .top_p = 0.999f, .min_p = 0.02f});
  add("top_p past a chunk, nearly all", {.temperature = 3.0f, .top_p = 0.99999f});
  add("top_p past a chunk, padding", {.temperature = 2.0f, .top_p = 0.995f}, 1200);
  add("top_k, then top_p", {.top_k = 40, .top_p = 0.8f});
  add("min_p", {.min_p = 0.05f});
  add("min_p 1", {.min_p = 1.0f});
  add("min_p 1 of ranks", {.top_k = 40, .min_p = 1.0f});
  add("all filters", {.temperature = 1.3f, .top_k = 50, .top_p = 0.95f, .min_p = 0.02f});
  add("padding rows are never sampled", {.temperature = 2.0f}, 3);
  add("banned", {}, 1 << 30, {0, 4, 1, -1, 1 << 20});
  add("banned, filtered", {.top_p = 0.9f}, 1 << 30, {0, 4, 1});
  add("banned, greedy", {.temperature = 0.0f}, 1 << 30, {0, 4, 1});
  add("repetition", {.repetition_penalty = 1.7f}, 1 << 30, {}, {0, 1, 2, 2, 999999}, {3, 3, 1, -5});
  add("frequency", {.frequency_penalty = 1.1f}, 1 << 30, {}, {0, 1, 2}, {3, 3, 3, 1});
  add("presence", {.presence_penalty = -1.5f}, 1 << 30, {}, {0, 1, 2}, {3, 3, 3, 1});
  add("all penalties, greedy",
      {.temperature = 0.0f,
       .repetition_penalty = 0.4f,
       .frequency_penalty = 0.5f,
       .presence_penalty = 0.25f},
      1 << 30, {2}, {0, 1, 2}, {3, 3, 3, 1});
  add("a penalty past what a float holds", {.repetition_penalty = 1e-38f}, 1 << 30, {}, {0, 1}, {});
  add("bias", {.logit_bias = {{0, 3.0f}, {2, -100.0f}, {1 << 25, 5.0f}}});
  add("bias decides", {.temperature = 0.0f, .logit_bias = {{1, 100.0f}}});
  add("bias on a penalty", {.repetition_penalty = 2.0f, .logit_bias = {{0, 4.0f}}}, 1 << 30, {},
      {0, 1}, {0});

  struct Shape {
    std::string name;
    size_t vocab;
    float scale;
    float step;  // logits are multiples of it, so that there are ties
  };
  const std::vector<Shape> shapes = {
      {"one token", 1, 1.0f, 0.0f},
      {"two tokens", 2, 1.0f, 0.0f},
      {"31", 31, 2.0f, 0.0f},
      {"33, ties", 33, 1.0f, 1.0f},
      {"a chunk less one", 1023, 3.0f, 0.0f},
      {"all equal", 1300, 0.0f, 0.0f},
      {"many ties", 1500, 1.0f, 0.5f},
      {"wide", 2500, 4.0f, 0.0f},
      {"flat", 3000, 0.01f, 0.0f},
      {"more than threads read at a time", 4600, 3.0f, 0.0f},
      {"largest floats", 40, kMax / 8, 0.0f},
  };
  for (const Shape& shape : shapes) {
    std::vector<SamplingCase> cases;
    for (const SamplingCase& row : table) {
      for (uint64_t index = 0; index < 3; ++index) {
        SamplingCase sampling = row;
        sampling.logits = random_.Values(shape.vocab, shape.scale);
        for (float& logit : sampling.logits) {
          if (shape.step > 0.0f) logit = std::round(logit / shape.step) * shape.step;
        }
        // A ban on everything leaves nothing to sample.
        if (shape.vocab <= 2) sampling.banned.clear();
        sampling.params.seed = 1234567 * cases.size() + 89;
        sampling.index = index;
        sampling.name += ", " + shape.name;
        cases.push_back(sampling);
      }
    }
    ExpectEqualToCpu(cases);
    if (HasFatalFailure()) return;
  }
}

// A token is a function of seed and index, and over indices has the distribution.
TEST_P(CudaSamplingTest, FrequenciesFollowTheProbabilities) {
  const std::vector<float> probability = {0.5f, 0.25f, 0.125f, 0.0625f, 0.0625f};
  std::vector<SamplingCase> cases(400);
  for (size_t n = 0; n < cases.size(); ++n) {
    for (const float p : probability) cases[n].logits.push_back(std::log(p));
    cases[n].params.seed = 42;
    cases[n].params.top_p = n % 2 == 0 ? 1.0f : 0.9999f;
    cases[n].index = n;
  }
  const Sampled sampled = OnDevice(cases);
  std::vector<double> share(probability.size());
  for (const int32_t id : sampled.id) share.at(id) += 1.0 / static_cast<double>(cases.size());
  for (size_t i = 0; i < share.size(); ++i) EXPECT_NEAR(share[i], probability[i], 0.08) << i;
}

// A row whose logits are not finite has no token; its neighbours do.
TEST_P(CudaSamplingTest, LogitsThatAreNotFiniteFailTheirRowAlone) {
  std::vector<SamplingCase> cases(5);
  for (SamplingCase& sampling : cases) sampling.logits = random_.Values(700, 1.0f);
  cases[1].logits[699] = NAN;
  cases[2].logits[0] = INFINITY;
  cases[3].logits[350] = -INFINITY;
  const Sampled sampled = OnDevice(cases);
  for (const size_t bad : {1, 2, 3}) EXPECT_EQ(sampled.id[bad], -1);
  for (const size_t good : {0, 4}) EXPECT_GE(sampled.id[good], 0);
}

TEST_P(CudaSamplingTest, TokensDependOnTheirRowAlone) {
  std::vector<SamplingCase> cases(6);
  for (size_t n = 0; n < cases.size(); ++n) {
    cases[n].logits = random_.Values(1200, 2.0f);
    cases[n].params.top_p = n % 2 == 0 ? 1.0f : 0.97f;
    cases[n].params.seed = n;
  }
  const Sampled together = OnDevice(cases);
  for (size_t n = 0; n < cases.size(); ++n) {
    const Sampled alone = OnDevice({cases[n]});
    EXPECT_EQ(alone.id[0], together.id[n]);
    EXPECT_EQ(alone.logprob[0], together.logprob[n]);
  }
}

std::vector<Engine> CudaEngines() {
  std::vector<Engine> engines = Engines();
  engines.erase(std::remove_if(engines.begin(), engines.end(),
                               [](const Engine& engine) { return engine.where == Where::kCpu; }),
                engines.end());
  return engines;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaSamplingTest);  // without a GPU
INSTANTIATE_TEST_SUITE_P(All, CudaSamplingTest, testing::ValuesIn(CudaEngines()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace ddl::kernels
