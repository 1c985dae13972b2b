#include "model/sampler.h"

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/kernels/philox.h"

namespace ddl {
namespace {

SampleRequest Request(float temperature, uint64_t seed = 1, uint64_t index = 0) {
  SampleRequest request;
  request.params.temperature = temperature;
  request.params.seed = seed;
  request.index = index;
  request.vocab_size = 1 << 30;
  return request;
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
    TokenId vocab_size;
    std::vector<TokenId> banned;
    TokenId want;
  };
  const std::vector<Row> rows = {
      {"largest", 5, {}, 4},
      {"padding rows are never drawn", 4, {}, 1},
      {"ties go to the lower id", 4, {}, 1},
      {"banned", 5, {4}, 1},
      {"several banned", 5, {4, 1}, 2},
      {"banned ids out of range are harmless", 5, {99, -1}, 4},
      {"one id left", 5, {0, 1, 2, 4}, 3},
  };
  for (const Row& row : rows) {
    SampleRequest request = Request(0.0f);
    request.vocab_size = row.vocab_size;
    request.banned = row.banned;
    EXPECT_EQ(Sample(logits, request).id, row.want) << row.name;
  }
}

TEST(SamplerTest, LogprobsAreOfTheWholeDistributionWhateverTheFilters) {
  const std::vector<float> logits = {0.5f, -1.0f, 2.0f, 2.0f, 0.0f};
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  for (const float temperature : {0.0f, 0.3f, 1.0f, 2.0f}) {
    for (const int32_t top_k : {-1, 1, 3}) {
      for (const int32_t logprobs : {-1, 0, 1, 3, 20}) {
        SampleRequest request = Request(temperature, 5, 3);
        request.params.top_k = top_k;
        request.logprobs = logprobs;
        const SampledToken token = Sample(logits, request);
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

// Draws `draws` tokens and compares their counts with the exact distribution by a chi-square
// statistic. Fixed seeds: the outcome never changes unless the sampler does.
void ExpectDistribution(const std::string& name, const std::vector<float>& logits,
                        SampleRequest request, const std::vector<double>& probabilities) {
  constexpr int kDraws = 20000;
  std::vector<int> counts(probabilities.size(), 0);
  for (int i = 0; i < kDraws; ++i) {
    request.index = static_cast<uint64_t>(i);
    ++counts[Sample(logits, request).id];
  }
  double chi_square = 0.0;
  int degrees = -1;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = probabilities[i] * kDraws;
    if (expected == 0.0) {
      EXPECT_EQ(counts[i], 0) << name << ": token " << i << " has probability 0";
      continue;
    }
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    ++degrees;
  }
  // Mean `degrees`, standard deviation sqrt(2 degrees): five of them away does not happen.
  EXPECT_LT(chi_square, degrees + 5.0 * std::sqrt(2.0 * std::max(degrees, 1))) << name;
}

TEST(SamplerTest, DrawsFromTheExactDistribution) {
  const std::vector<float> logits = {1.0f, 0.0f, 2.0f, -1.0f, 1.5f, 0.5f};
  const auto softmax = [&](double temperature, const std::set<TokenId>& kept) {
    std::vector<double> p(logits.size(), 0.0);
    double sum = 0.0;
    for (const TokenId id : kept) sum += p[id] = std::exp(logits[id] / temperature);
    for (double& value : p) value /= sum;
    return p;
  };
  const std::set<TokenId> all = {0, 1, 2, 3, 4, 5};
  struct Row {
    std::string name;
    float temperature;
    int32_t top_k;
    float top_p;
    std::vector<TokenId> banned;
    std::set<TokenId> kept;
  };
  // Probabilities at temperature 1: 0 .157, 1 .058, 2 .426, 3 .021, 4 .258, 5 .095 (rounded).
  const std::vector<Row> rows = {
      {"plain", 1.0f, -1, 1.0f, {}, all},
      {"hot", 2.0f, -1, 1.0f, {}, all},
      {"cold", 0.25f, -1, 1.0f, {}, all},
      {"top_k 1", 1.0f, 1, 1.0f, {}, {2}},
      {"top_k 3", 1.0f, 3, 1.0f, {}, {0, 2, 4}},
      {"top_k past the vocabulary", 1.0f, 100, 1.0f, {}, all},
      {"top_p within the first token", 1.0f, -1, 0.2f, {}, {2}},
      {"top_p that one token crosses", 1.0f, -1, 0.5f, {}, {2, 4}},
      {"top_p close to 1", 1.0f, -1, 0.97f, {}, {0, 1, 2, 4, 5}},
      {"top_p of what top_k leaves", 1.0f, 3, 0.8f, {}, {2, 4}},
      {"banned", 1.0f, -1, 1.0f, {2, 4}, {0, 1, 3, 5}},
      {"banned before top_k", 1.0f, 2, 1.0f, {2}, {0, 4}},
  };
  for (const Row& row : rows) {
    SampleRequest request = Request(row.temperature, 77);
    request.params.top_k = row.top_k;
    request.params.top_p = row.top_p;
    request.banned = row.banned;
    ExpectDistribution(row.name, logits, request, softmax(row.temperature, row.kept));
  }
}

// A flat distribution makes the filters look past the first few hundred candidates.
TEST(SamplerTest, TopPOverAFlatVocabulary) {
  const std::vector<float> logits(5000, 0.0f);
  SampleRequest request = Request(1.0f, 9);
  request.params.top_p = 0.5f;
  TokenId largest = 0;
  for (int i = 0; i < 4000; ++i) {
    request.index = static_cast<uint64_t>(i);
    largest = std::max(largest, Sample(logits, request).id);
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
      const TokenId first = Sample(logits, Request(1.0f, seed, index)).id;
      EXPECT_EQ(Sample(logits, Request(1.0f, seed, index)).id, first);
      ++distinct[first];
    }
  }
  EXPECT_GT(distinct.size(), 100u);
}

TEST(SamplerTest, ExtremeLogits) {
  const std::vector<float> logits = {-1e30f, 3e38f, -3e38f, 0.0f};
  for (const float temperature : {0.0f, 0.01f, 1.0f, 2.0f}) {
    SampleRequest request = Request(temperature);
    EXPECT_EQ(Sample(logits, request).id, 1) << temperature;
    const std::vector<TokenId> banned = {1};
    request.banned = banned;
    EXPECT_EQ(Sample(logits, request).id, 3) << temperature;
  }
}

}  // namespace
}  // namespace ddl
