#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/kernels/philox.h"

namespace ddl {
namespace {

const kernels::CpuKernels& TestedKernels() {
  static const auto kernels = kernels::MakeCpuKernels(kernels::BestInstructionSet(), {});
  return *kernels;
}

// A request with everything that it refers to.
struct Sampling {
  SamplingParams params = {};
  std::vector<TokenId> prompt = {};
  std::vector<TokenId> generated = {};
  std::vector<TokenId> banned = {};
  uint64_t index = 0;
  TokenId vocab_size = 1 << 30;
  int32_t logprobs = -1;

  SampledToken From(const std::vector<float>& logits) const {
    SampleRequest request;
    request.params = &params;
    request.prompt = prompt;
    request.generated = generated;
    request.banned = banned;
    request.index = index;
    request.vocab_size = vocab_size;
    request.logprobs = logprobs;
    return Sample(TestedKernels(), logits, request);
  }
};

Sampling At(float temperature, uint64_t seed = 1, uint64_t index = 0) {
  Sampling sampling;
  sampling.params.temperature = temperature;
  sampling.params.seed = seed;
  sampling.index = index;
  return sampling;
}

// Random123's known answers for Philox4x32-10.
TEST(PhiloxTest, KnownAnswer) {
  const kernels::PhiloxBlock zero = kernels::Philox(0, 0);
  EXPECT_EQ(zero.word[0], 0x6627e8d5u);
  EXPECT_EQ(zero.word[1], 0xe169c58du);
  EXPECT_EQ(zero.word[2], 0xbc57ac4cu);
  EXPECT_EQ(zero.word[3], 0x9b00dbd8u);
}

TEST(SamplerTest, Greedy) {
  const std::vector<float> logits = {1.0f, 5.0f, 5.0f, -2.0f, 7.0f};
  struct Row {
    std::string name;
    Sampling sampling;
    TokenId want;
  };
  const std::vector<Row> rows = {
      {"largest", {}, 4},
      {"padding rows are never sampled", {.vocab_size = 4}, 1},
      {"ties go to the lower id", {.banned = {4}}, 1},
      {"several banned", {.banned = {4, 1}}, 2},
      {"banned ids out of range are harmless", {.banned = {99, -1}}, 4},
      {"one id left", {.banned = {0, 1, 2, 4}}, 3},
      {"repetition penalty", {.params = {.repetition_penalty = 2.0f}, .prompt = {4, 1}}, 2},
      {"below one it rewards", {.params = {.repetition_penalty = 0.1f}, .generated = {0}}, 0},
      {"it moves a negative logit away",
       {.params = {.repetition_penalty = 2.0f}, .prompt = {3}, .banned = {0, 1, 2, 4}},
       3},
      {"frequency penalty", {.params = {.frequency_penalty = 1.0f}, .generated = {4, 4, 4}}, 1},
      {"frequency penalty not of the prompt",
       {.params = {.frequency_penalty = 1.0f}, .prompt = {4, 4, 4}},
       4},
      {"a presence penalty once",
       {.params = {.presence_penalty = 1.5f}, .generated = {4, 4, 4}},
       4},
      {"presence penalty not of the prompt",
       {.params = {.presence_penalty = 2.0f}, .prompt = {4}, .generated = {1}},
       4},
      {"a tie made by a penalty", {.params = {.presence_penalty = 2.0f}, .generated = {4}}, 1},
      {"bias", {.params = {.logit_bias = {{0, 6.5f}}}}, 0},
      {"bias -100", {.params = {.logit_bias = {{4, -100.0f}}}}, 1},
      {"bias +100", {.params = {.logit_bias = {{3, 100.0f}}}}, 3},
      {"bias of a padding row", {.params = {.logit_bias = {{4, 100.0f}}}, .vocab_size = 4}, 1},
      {"banned in spite of a bias", {.params = {.logit_bias = {{3, 100.0f}}}, .banned = {3}}, 4},
      {"penalised ids out of range are harmless",
       {.params = {.repetition_penalty = 2.0f, .frequency_penalty = 1.0f},
        .prompt = {99, -1},
        .generated = {5, 99, -7}},
       4},
  };
  for (Row row : rows) {
    row.sampling.params.temperature = 0.0f;
    EXPECT_EQ(row.sampling.From(logits).id, row.want) << row.name;
  }
}

TEST(SamplerTest, NoParametersAreTheDefaults) {
  const std::vector<float> logits = {0.5f, -1.0f, 2.0f, 2.0f, 0.0f};
  SampleRequest request;
  request.vocab_size = 5;
  for (request.index = 0; request.index < 100; ++request.index) {
    Sampling defaults;
    defaults.index = request.index;
    EXPECT_EQ(Sample(TestedKernels(), logits, request).id, defaults.From(logits).id);
  }
}

TEST(SamplerTest, LogprobsAreOfTheWholeDistributionWhateverTheFilters) {
  const std::vector<float> logits = {0.5f, -1.0f, 2.0f, 2.0f, 0.0f};
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  for (const float temperature : {0.0f, 0.3f, 1.0f, 2.0f}) {
    for (const int32_t top_k : {-1, 1, 3}) {
      for (const float penalty : {1.0f, 1.7f}) {
        for (const int32_t logprobs : {-1, 0, 1, 3, 20}) {
          Sampling sampling = At(temperature, 5, 3);
          sampling.params.top_k = top_k;
          sampling.params.repetition_penalty = penalty;
          sampling.params.logit_bias = {{1, 3.0f * (penalty - 1.0f)}};
          sampling.generated = {2, 3, 3};
          sampling.logprobs = logprobs;
          const SampledToken token = sampling.From(logits);
          EXPECT_NEAR(token.logprob, logits[token.id] - std::log(sum), 1e-6);
          ASSERT_EQ(token.top.size(), static_cast<size_t>(std::min(std::max(logprobs, 0), 5)));
          const std::vector<TokenId> order = {2, 3, 0, 4, 1};
          for (size_t i = 0; i < token.top.size(); ++i) {
            EXPECT_EQ(token.top[i].id, order[i]);
            EXPECT_NEAR(token.top[i].logprob, logits[order[i]] - std::log(sum), 1e-6);
          }
        }
      }
    }
  }
}

// The search for the most likely looks at the vocabulary once, with few candidates: against a full
// sort, over vocabularies whose best are first, last, everywhere, and equal.
TEST(SamplerTest, TheMostLikelyOfALargeVocabulary) {
  struct Row {
    std::string name;
    float (*logit)(int);
  };
  const std::vector<Row> rows = {
      {"rising", [](int i) { return 0.001f * static_cast<float>(i); }},
      {"falling", [](int i) { return -0.001f * static_cast<float>(i); }},
      {"flat", [](int) { return 1.0f; }},
      {"scattered", [](int i) { return std::sin(static_cast<float>(i * 7919 % 5003)); }},
      {"many ties", [](int i) { return static_cast<float>(i * 7919 % 13); }},
  };
  for (const Row& row : rows) {
    std::vector<float> logits;
    std::vector<TokenId> order;
    for (int i = 0; i < 5003; ++i) {
      logits.push_back(row.logit(i));
      order.push_back(i);
    }
    std::ranges::stable_sort(order, [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
    for (const int32_t logprobs : {1, 2, 20, 300, 5003, 6000}) {
      Sampling sampling;
      sampling.logprobs = logprobs;
      std::vector<TokenId> found;
      for (const TokenLogprob& top : sampling.From(logits).top) found.push_back(top.id);
      const size_t count = std::min<size_t>(logprobs, logits.size());
      EXPECT_EQ(found, std::vector<TokenId>(order.begin(), order.begin() + count))
          << row.name << " " << logprobs;
    }
  }
}

TEST(SamplerTest, ScoreIsWhatSampleReports) {
  std::vector<float> logits;
  for (int i = 0; i < 1003; ++i) logits.push_back(4.0f * std::sin(static_cast<float>(i)));
  for (const float temperature : {0.0f, 0.7f, 1.0f}) {
    for (uint64_t index = 0; index < 20; ++index) {
      Sampling sampling = At(temperature, 3, index);
      sampling.params.repetition_penalty = 1.3f;
      sampling.generated = {4, 7, 7};
      sampling.vocab_size = 1000;
      sampling.logprobs = 20;
      const SampledToken sampled = sampling.From(logits);
      const SampledToken scored = Score(TestedKernels(), logits, sampled.id, 1000, 20);
      EXPECT_EQ(scored.id, sampled.id);
      EXPECT_EQ(scored.logprob, sampled.logprob);
      ASSERT_EQ(scored.top.size(), 20u);
      for (size_t i = 0; i < 20; ++i) {
        EXPECT_EQ(scored.top[i].id, sampled.top[i].id);
        EXPECT_EQ(scored.top[i].logprob, sampled.top[i].logprob);
      }
    }
  }
  EXPECT_TRUE(Score(TestedKernels(), logits, 5, 1000, 0).top.empty());
  EXPECT_EQ(Score(TestedKernels(), logits, 1000, 1000, 0).logprob,
            -std::numeric_limits<float>::infinity())
      << "a padding row has no probability";
}

// The official code's log softmax is over all of the model's logits.
TEST(SamplerTest, LogprobsAreOfAllLogitsPaddingIncluded) {
  std::vector<float> logits;
  for (int i = 0; i < 1003; ++i) logits.push_back(4.0f * std::sin(static_cast<float>(i)));
  logits[1001] = 6.0f;  // the largest: leaving it out shows
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  for (const TokenId target : {0, 7, 999}) {
    EXPECT_NEAR(Score(TestedKernels(), logits, target, 1000, 0).logprob,
                logits[target] - std::log(sum), 1e-5)
        << target;
  }
  Sampling sampling = At(1.0f);
  sampling.vocab_size = 1000;
  sampling.logprobs = 20;
  const SampledToken sampled = sampling.From(logits);
  EXPECT_NEAR(sampled.logprob, logits[sampled.id] - std::log(sum), 1e-5);
  for (const TokenLogprob& likely : sampled.top) EXPECT_LT(likely.id, 1000);
}

// What a padding row's logit is changes no sample, however likely it is.
TEST(SamplerTest, PaddingRowsChangeNoSample) {
  std::vector<float> logits;
  for (int i = 0; i < 1000; ++i) logits.push_back(4.0f * std::sin(static_cast<float>(i)));
  std::vector<SamplingParams> rows(5);
  rows[1].min_p = 0.3f;
  rows[2].top_k = 5;
  rows[3].top_p = 0.5f;
  rows[4].temperature = 0.05f;
  for (const float padding : {-50.0f, 0.0f, 4.0f, 60.0f}) {
    std::vector<float> padded = logits;
    padded.resize(1024, padding);
    for (size_t row = 0; row < rows.size(); ++row) {
      for (uint64_t index = 0; index < 50; ++index) {
        Sampling sampling;
        sampling.params = rows[row];
        sampling.index = index;
        const TokenId expected = sampling.From(logits).id;
        sampling.vocab_size = 1000;
        EXPECT_EQ(sampling.From(padded).id, expected) << padding << " row " << row;
      }
    }
  }
}

// Probability that a chi-square variable of so many degrees of freedom is at least x: the finite
// sums for an even and an odd number of degrees.
double ChiSquareTail(double x, int degrees) {
  const double half = x / 2.0;
  double term = degrees % 2 == 0 ? std::exp(-half) : 2.0 * std::sqrt(half / M_PI) * std::exp(-half);
  double tail = degrees % 2 == 0 ? 0.0 : std::erfc(std::sqrt(half));
  for (double n = degrees % 2 == 0 ? 1.0 : 1.5; n <= degrees / 2.0; n += 1.0) {
    tail += term;
    term *= half / n;
  }
  return tail;
}

TEST(ChiSquareTailTest, KnownQuantiles) {
  EXPECT_NEAR(ChiSquareTail(3.841459, 1), 0.05, 1e-6);
  EXPECT_NEAR(ChiSquareTail(9.210340, 2), 0.01, 1e-6);
  EXPECT_NEAR(ChiSquareTail(7.814728, 3), 0.05, 1e-6);
  EXPECT_NEAR(ChiSquareTail(11.070498, 5), 0.05, 1e-6);
  EXPECT_NEAR(ChiSquareTail(18.307038, 10), 0.05, 1e-6);
}

// Samples tokens and compares their counts with the exact distribution by Pearson's chi-square
// test. Fixed seeds: the outcome never changes unless the sampler does, and a right sampler would
// fail a row once in a hundred thousand choices of a seed.
void ExpectDistribution(const std::string& name, const std::vector<float>& logits,
                        Sampling sampling, const std::vector<double>& probabilities) {
  constexpr int kSamples = 20000;
  constexpr double kSmallestP = 1e-5;
  std::vector<int> counts(probabilities.size(), 0);
  for (int i = 0; i < kSamples; ++i) {
    sampling.index = static_cast<uint64_t>(i);
    ++counts[sampling.From(logits).id];
  }
  double chi_square = 0.0;
  int degrees = -1;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = probabilities[i] * kSamples;
    if (expected < 1e-6) {
      EXPECT_EQ(counts[i], 0) << name << ": token " << i << " has probability " << probabilities[i];
      continue;
    }
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    ++degrees;
  }
  if (degrees == 0) return;  // one token: its count is all
  EXPECT_GT(ChiSquareTail(chi_square, degrees), kSmallestP) << name << ": " << chi_square;
}

TEST(SamplerTest, SamplesFromTheExactDistribution) {
  const std::vector<float> logits = {1.0f, 0.0f, 2.0f, -1.0f, 1.5f, 0.5f};
  const std::set<TokenId> all = {0, 1, 2, 3, 4, 5};
  struct Row {
    std::string name;
    Sampling sampling;
    std::set<TokenId> kept;
    std::vector<float> adjusted;  // by penalties and bias; empty: the logits
  };
  // Probabilities at temperature 1: 0 .157, 1 .058, 2 .426, 3 .021, 4 .258, 5 .095 (rounded).
  // Beside the most probable:       0 .368, 1 .135, 2 1,    3 .050, 4 .607, 5 .223.
  const std::vector<Row> rows = {
      {"plain", {}, all, {}},
      {"hot", {.params = {.temperature = 2.0f}}, all, {}},
      {"cold", {.params = {.temperature = 0.25f}}, all, {}},
      {"as cold as a float can say", {.params = {.temperature = 1e-40f}}, {2}, {}},
      {"top_k 1", {.params = {.top_k = 1}}, {2}, {}},
      {"top_k 3", {.params = {.top_k = 3}}, {0, 2, 4}, {}},
      {"top_k past the vocabulary", {.params = {.top_k = 100}}, all, {}},
      {"top_p tiny", {.params = {.top_p = 1e-9f}}, {2}, {}},
      {"top_p within the first token", {.params = {.top_p = 0.2f}}, {2}, {}},
      {"top_p that one token crosses", {.params = {.top_p = 0.5f}}, {2, 4}, {}},
      {"top_p close to 1", {.params = {.top_p = 0.97f}}, {0, 1, 2, 4, 5}, {}},
      {"top_p of what top_k leaves", {.params = {.top_k = 3, .top_p = 0.8f}}, {2, 4}, {}},
      {"min_p that keeps all", {.params = {.min_p = 0.04f}}, all, {}},
      {"min_p", {.params = {.min_p = 0.3f}}, {0, 2, 4}, {}},
      {"min_p just above a token", {.params = {.min_p = 0.37f}}, {2, 4}, {}},
      {"min_p 1", {.params = {.min_p = 1.0f}}, {2}, {}},
      // Beside the most probable at temperature 2: 0 .607, 1 .368, 3 .223, 4 .779, 5 .472.
      {"min_p after the temperature",
       {.params = {.temperature = 2.0f, .min_p = 0.3f}},
       {0, 1, 2, 4, 5},
       {}},
      {"min_p beside the most probable that is not banned",
       {.params = {.min_p = 0.5f}, .banned = {2}},
       {0, 4},
       {}},
      {"min_p tighter than top_k", {.params = {.top_k = 5, .min_p = 0.3f}}, {0, 2, 4}, {}},
      {"top_k tighter than min_p", {.params = {.top_k = 2, .min_p = 0.3f}}, {2, 4}, {}},
      // Of what min_p leaves, 80 % would be {2, 4}.
      {"top_p before min_p", {.params = {.top_p = 0.8f, .min_p = 0.3f}}, {0, 2, 4}, {}},
      {"all filters", {.params = {.top_k = 4, .top_p = 0.99f, .min_p = 0.3f}}, {0, 2, 4}, {}},
      {"banned", {.banned = {2, 4}}, {0, 1, 3, 5}, {}},
      {"banned before top_k", {.params = {.top_k = 2}, .banned = {2}}, {0, 4}, {}},
      {"all but one banned", {.banned = {0, 1, 2, 4, 5}}, {3}, {}},
      {"all but one banned, filtered",
       {.params = {.top_k = 3, .top_p = 0.5f, .min_p = 1.0f}, .banned = {0, 1, 2, 4, 5}},
       {3},
       {}},
      {"repetition penalty, of prompt and completion, once each",
       {.params = {.repetition_penalty = 2.0f}, .prompt = {2, 1, 2}, .generated = {3, 3, 2}},
       all,
       {1.0f, 0.0f, 1.0f, -2.0f, 1.5f, 0.5f}},
      {"repetition reward",
       {.params = {.repetition_penalty = 0.5f}, .prompt = {0}, .generated = {3}},
       all,
       {2.0f, 0.0f, 2.0f, -0.5f, 1.5f, 0.5f}},
      {"frequency penalty, not of the prompt",
       {.params = {.frequency_penalty = 0.5f}, .prompt = {0, 0}, .generated = {2, 4, 2, 2}},
       all,
       {1.0f, 0.0f, 0.5f, -1.0f, 1.0f, 0.5f}},
      {"frequency reward",
       {.params = {.frequency_penalty = -0.5f}, .generated = {3, 3}},
       all,
       {1.0f, 0.0f, 2.0f, 0.0f, 1.5f, 0.5f}},
      {"one token many times",
       {.params = {.frequency_penalty = 2.0f}, .generated = std::vector<TokenId>(50, 2)},
       all,
       {1.0f, 0.0f, -98.0f, -1.0f, 1.5f, 0.5f}},
      {"presence penalty, once, not of the prompt",
       {.params = {.presence_penalty = 1.5f}, .prompt = {4}, .generated = {2, 2}},
       all,
       {1.0f, 0.0f, 0.5f, -1.0f, 1.5f, 0.5f}},
      {"presence reward",
       {.params = {.presence_penalty = -2.0f}, .generated = {1}},
       all,
       {1.0f, 2.0f, 2.0f, -1.0f, 1.5f, 0.5f}},
      {"all penalties, repetition first",
       {.params = {.repetition_penalty = 2.0f,
                   .frequency_penalty = 0.25f,
                   .presence_penalty = 0.5f},
        .prompt = {2},
        .generated = {4, 4, 0}},
       all,
       {-0.25f, 0.0f, 1.0f, -1.0f, -0.25f, 0.5f}},
      {"bias",
       {.params = {.logit_bias = {{1, 2.0f}, {2, -1.0f}}}},
       all,
       {1.0f, 2.0f, 1.0f, -1.0f, 1.5f, 0.5f}},
      {"bias -100", {.params = {.logit_bias = {{2, -100.0f}}}}, {0, 1, 3, 4, 5}, {}},
      {"bias +100", {.params = {.logit_bias = {{3, 100.0f}}}}, {3}, {}},
      {"bias after the penalties",
       {.params = {.repetition_penalty = 2.0f, .logit_bias = {{2, 1.0f}, {3, 2.0f}}},
        .prompt = {2, 3}},
       all,
       {1.0f, 0.0f, 2.0f, 0.0f, 1.5f, 0.5f}},
      {"temperature after penalties and bias",
       {.params = {.temperature = 0.5f,
                   .presence_penalty = 0.5f,
                   .logit_bias = {{1, 1.0f}, {4, -0.5f}}},
        .generated = {2}},
       all,
       {1.0f, 1.0f, 1.5f, -1.0f, 1.0f, 0.5f}},
      {"filters after the penalties",
       {.params = {.top_k = 2, .repetition_penalty = 4.0f}, .prompt = {2}},
       {0, 4},
       {}},
      {"min_p after the bias",  // 2 is e^-2 beside 1, 4 is e^-2.5
       {.params = {.min_p = 0.1f, .logit_bias = {{1, 4.0f}}}},
       {1, 2},
       {1.0f, 4.0f, 2.0f, -1.0f, 1.5f, 0.5f}},
      {"everything",
       {.params = {.temperature = 2.0f,
                   .top_k = 4,
                   .top_p = 0.99f,
                   .min_p = 0.4f,
                   .repetition_penalty = 2.0f,
                   .frequency_penalty = 0.5f,
                   .presence_penalty = -0.5f,
                   .logit_bias = {{3, 2.0f}}},
        .prompt = {0},
        .generated = {2},
        .banned = {4}},
       {0, 2, 3, 5},
       {0.5f, 0.0f, 1.0f, 1.0f, 1.5f, 0.5f}},
  };
  for (Row row : rows) {
    const std::vector<float>& adjusted = row.adjusted.empty() ? logits : row.adjusted;
    const auto temperature = static_cast<double>(row.sampling.params.temperature);
    double largest = -INFINITY;
    for (const TokenId id : row.kept) largest = std::max<double>(largest, adjusted[id]);
    std::vector<double> probabilities(logits.size(), 0.0);
    double sum = 0.0;
    for (const TokenId id : row.kept) {
      sum += probabilities[id] = std::exp((adjusted[id] - largest) / temperature);
    }
    for (double& probability : probabilities) probability /= sum;
    row.sampling.params.seed = 77;
    ExpectDistribution(row.name, logits, row.sampling, probabilities);
  }
}

// What one call counted is forgotten by the next, of whatever vocabulary.
TEST(SamplerTest, CallsLeaveNothingBehind) {
  Sampling penalised = At(0.0f);
  penalised.params.repetition_penalty = 2.0f;
  penalised.params.frequency_penalty = 1.0f;
  penalised.params.logit_bias = {{1, -3.0f}};
  penalised.prompt = {2};
  penalised.generated = {0, 0, 3};
  Sampling plain = At(0.0f);
  Sampling counting = At(0.0f);
  counting.params.frequency_penalty = 0.5f;
  counting.generated = {3};
  const std::vector<float> small = {3.0f, 2.0f, 1.0f, 3.2f};
  std::vector<float> large(1000, 0.0f);
  large[900] = 1.0f;
  large[3] = 1.25f;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(penalised.From(small).id, 3);  // at -0.5, -1, 0.5, 0.6
    EXPECT_EQ(plain.From(small).id, 3);
    EXPECT_EQ(counting.From(large).id, 900);
    EXPECT_EQ(counting.From(small).id, 0);
  }
}

// A flat distribution makes the filters look past the first few hundred candidates.
TEST(SamplerTest, TopPOverAFlatVocabulary) {
  const std::vector<float> logits(5000, 0.0f);
  Sampling sampling = At(1.0f, 9);
  sampling.params.top_p = 0.5f;
  TokenId largest = 0;
  for (int i = 0; i < 4000; ++i) {
    sampling.index = static_cast<uint64_t>(i);
    largest = std::max(largest, sampling.From(logits).id);
  }
  EXPECT_LT(largest, 2502);  // ties go to the lower id: the first half is kept
  EXPECT_GT(largest, 2450);
}

TEST(SamplerTest, SeedAndIndexDecide) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
  std::map<TokenId, int> distinct;
  for (uint64_t seed : {0ull, 1ull, ~0ull}) {
    for (uint64_t index = 0; index < 50; ++index) {
      const TokenId first = At(1.0f, seed, index).From(logits).id;
      EXPECT_EQ(At(1.0f, seed, index).From(logits).id, first);
      ++distinct[first];
    }
  }
  EXPECT_GT(distinct.size(), 100u);
}

TEST(SamplerTest, ExtremeLogits) {
  const std::vector<float> logits = {-1e30f, 3e38f, -3e38f, 0.0f};
  for (const float temperature : {0.0f, 0.01f, 1.0f, 2.0f}) {
    Sampling sampling = At(temperature);
    EXPECT_EQ(sampling.From(logits).id, 1) << temperature;
    sampling.banned = {1};
    EXPECT_EQ(sampling.From(logits).id, 3) << temperature;
    sampling.params.repetition_penalty = 1e-3f;  // past what a float holds, in both directions
    sampling.prompt = {0, 1, 2};
    EXPECT_EQ(sampling.From(logits).id, 3) << temperature;
    sampling.banned = {};
    EXPECT_EQ(sampling.From(logits).id, 1) << temperature;
    sampling.params.repetition_penalty = 1e3f;
    sampling.banned = {1, 3};
    EXPECT_EQ(sampling.From(logits).id, 0) << temperature;
  }
}

}  // namespace
}  // namespace ddl
