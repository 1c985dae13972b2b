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

struct Draw {
  std::string name;
  SamplingParams params = {};
  TokenId vocab_size = 1 << 30;
  std::vector<TokenId> banned = {}, prompt = {}, generated = {};
  std::vector<float> logits = {};
  uint64_t index = 0;
};

struct Drawn {
  std::vector<int32_t> id;
  std::vector<float> logprob;
};

class CudaSamplingTest : public testing::TestWithParam<Engine> {
 protected:
  // All draws in one call; they have one vocabulary.
  Drawn OnDevice(const std::vector<Draw>& draws) const {
    cuda::ChooseSchedule(GetParam().schedule);
    CudaSession session;
    const size_t vocab = draws.front().logits.size();
    std::vector<float> logits;
    std::vector<cuda::SampleRow> rows;
    for (const Draw& draw : draws) {
      logits.insert(logits.end(), draw.logits.begin(), draw.logits.end());
      const SamplingParams& params = draw.params;
      cuda::SampleRow row =
          SampleRowOf(params, draw.index, std::min(draw.vocab_size, static_cast<TokenId>(vocab)));
      std::vector<cuda::SampleBias> bias;
      for (const LogitBias& entry : params.logit_bias) bias.push_back({entry.id, entry.bias});
      const auto array = [&](const auto& values, auto*& pointer, int32_t& count) {
        count = static_cast<int32_t>(values.size());
        pointer = values.empty()
                      ? nullptr
                      : session.In(values.data(), values.size() * sizeof(values.front()));
      };
      array(bias, row.bias, row.bias_count);
      array(draw.banned, row.banned, row.banned_count);
      array(draw.prompt, row.prompt, row.prompt_count);
      array(draw.generated, row.generated, row.generated_count);
      rows.push_back(row);
    }
    const auto count = static_cast<int64_t>(draws.size());
    Drawn drawn{std::vector<int32_t>(draws.size(), -7), std::vector<float>(draws.size(), NAN)};
    const std::vector<unsigned char> workspace(
        cuda::SampleWorkspaceBytes(count, static_cast<int64_t>(vocab)), 0xff);
    cuda::SampleTokensArgs args;
    args.vocab = static_cast<int64_t>(vocab);
    args.logits = session.In(logits.data(), logits.size() * sizeof(float));
    args.rows = session.In(rows.data(), rows.size() * sizeof(cuda::SampleRow));
    args.workspace = session.In(const_cast<unsigned char*>(workspace.data()), workspace.size());
    args.id = session.InOut(drawn.id.data(), drawn.id.size() * 4);
    args.logprob = session.InOut(drawn.logprob.data(), drawn.logprob.size() * 4);
    EXPECT_EQ(cuda::SampleTokens(nullptr, count, args), cuda::kSuccess);
    session.CopyBack();
    return drawn;
  }

  void ExpectEqualToCpu(const std::vector<Draw>& draws) const {
    const auto cpu = MakeCpuKernels(BestInstructionSet(), {});
    const Drawn drawn = OnDevice(draws);
    for (size_t n = 0; n < draws.size(); ++n) {
      SampleRequest request;
      request.params = &draws[n].params;
      request.index = draws[n].index;
      request.vocab_size = draws[n].vocab_size;
      request.banned = draws[n].banned;
      request.prompt = draws[n].prompt;
      request.generated = draws[n].generated;
      const SampledToken want = Sample(*cpu, draws[n].logits, request);
      ASSERT_EQ(drawn.id[n], want.id) << draws[n].name << ", vocabulary " << draws[n].logits.size()
                                      << ", index " << draws[n].index;
      ASSERT_NEAR(drawn.logprob[n], want.logprob, 2e-5 * (1.0 + std::abs(want.logprob)))
          << draws[n].name;
    }
  }

  Random random_;
};

// Each row of the table, with logits of several shapes.
TEST_P(CudaSamplingTest, DrawsWhatTheCpuDraws) {
  const float kMax = std::numeric_limits<float>::max();
  std::vector<Draw> table;
  const auto add = [&](const std::string& name, const SamplingParams& params,
                       TokenId vocab_size = 1 << 30, std::vector<TokenId> banned = {},
                       std::vector<TokenId> prompt = {}, std::vector<TokenId> generated = {}) {
    Draw draw;
    draw.name = name;
    draw.params = params;
    draw.vocab_size = vocab_size;
    draw.banned = banned;
    draw.prompt = prompt;
    draw.generated = generated;
    table.push_back(draw);
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
  add("padding rows are never drawn", {.temperature = 2.0f}, 3);
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
      {"largest floats", 40, kMax / 8, 0.0f},
  };
  for (const Shape& shape : shapes) {
    std::vector<Draw> draws;
    for (const Draw& row : table) {
      for (uint64_t index = 0; index < 3; ++index) {
        Draw draw = row;
        draw.logits = random_.Values(shape.vocab, shape.scale);
        for (float& logit : draw.logits) {
          if (shape.step > 0.0f) logit = std::round(logit / shape.step) * shape.step;
        }
        // A ban on everything leaves nothing to draw.
        if (shape.vocab <= 2) draw.banned.clear();
        draw.params.seed = 1234567 * draws.size() + 89;
        draw.index = index;
        draw.name += ", " + shape.name;
        draws.push_back(draw);
      }
    }
    ExpectEqualToCpu(draws);
    if (HasFatalFailure()) return;
  }
}

// A draw is a function of seed and index, and over indices has the distribution.
TEST_P(CudaSamplingTest, FrequenciesFollowTheProbabilities) {
  const std::vector<float> probability = {0.5f, 0.25f, 0.125f, 0.0625f, 0.0625f};
  std::vector<Draw> draws(400);
  for (size_t n = 0; n < draws.size(); ++n) {
    for (const float p : probability) draws[n].logits.push_back(std::log(p));
    draws[n].params.seed = 42;
    draws[n].params.top_p = n % 2 == 0 ? 1.0f : 0.9999f;
    draws[n].index = n;
  }
  const Drawn drawn = OnDevice(draws);
  std::vector<double> share(probability.size());
  for (const int32_t id : drawn.id) share.at(id) += 1.0 / static_cast<double>(draws.size());
  for (size_t i = 0; i < share.size(); ++i) EXPECT_NEAR(share[i], probability[i], 0.08) << i;
}

// A row whose logits are not finite has no token; its neighbours do.
TEST_P(CudaSamplingTest, LogitsThatAreNotFiniteFailTheirRowAlone) {
  std::vector<Draw> draws(5);
  for (Draw& draw : draws) draw.logits = random_.Values(700, 1.0f);
  draws[1].logits[699] = NAN;
  draws[2].logits[0] = INFINITY;
  draws[3].logits[350] = -INFINITY;
  const Drawn drawn = OnDevice(draws);
  for (const size_t bad : {1, 2, 3}) EXPECT_EQ(drawn.id[bad], -1);
  for (const size_t good : {0, 4}) EXPECT_GE(drawn.id[good], 0);
}

TEST_P(CudaSamplingTest, TokensDependOnTheirRowAlone) {
  std::vector<Draw> draws(6);
  for (size_t n = 0; n < draws.size(); ++n) {
    draws[n].logits = random_.Values(1200, 2.0f);
    draws[n].params.top_p = n % 2 == 0 ? 1.0f : 0.97f;
    draws[n].params.seed = n;
  }
  const Drawn together = OnDevice(draws);
  for (size_t n = 0; n < draws.size(); ++n) {
    const Drawn alone = OnDevice({draws[n]});
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
