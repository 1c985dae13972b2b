#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "model/check.h"
#include "model/kernels/kernels.h"
#include "model/kernels/philox.h"

namespace ddl {
namespace {

bool IsBanned(const SampleRequest& request, TokenId id) {
  return std::find(request.banned.begin(), request.banned.end(), id) != request.banned.end();
}

// The `count` ids that are most likely by `values`, most likely first, ties to the lower id.
std::vector<TokenId> MostLikely(absl::Span<const float> values, size_t count) {
  std::vector<TokenId> ids(values.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i);
  const auto more_likely = [&](TokenId a, TokenId b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  };
  count = std::min(count, ids.size());
  std::nth_element(ids.begin(), ids.begin() + count, ids.end(), more_likely);
  ids.resize(count);
  std::sort(ids.begin(), ids.end(), more_likely);
  return ids;
}

// The token at which the running sum of weights passes `target`; the last one with any weight if
// rounding lets none.
template <typename WeightOf>
size_t Walk(size_t n, double target, WeightOf weight_of) {
  double sum = 0.0;
  size_t last = 0;
  for (size_t i = 0; i < n; ++i) {
    const double weight = weight_of(i);
    if (weight <= 0.0) continue;
    sum += weight;
    last = i;
    if (sum > target) return i;
  }
  return last;
}

// Draws by `weights` [vocab], not normalised; banned ids weigh 0.
TokenId Draw(const SampleRequest& request, absl::Span<const float> weights) {
  const SamplingParams& params = request.params;
  const double u = kernels::PhiloxUniform(params.seed, request.index);
  const size_t n = weights.size();
  const bool filtered = params.top_k > 0 || params.top_p < 1.0f;
  double total = 0.0;
  for (const float weight : weights) total += weight;
  if (!filtered) {
    return static_cast<TokenId>(Walk(n, u * total, [&](size_t i) { return weights[i]; }));
  }

  // Most distributions have their mass in a few tokens: look at more only when these do not do.
  std::vector<TokenId> kept;
  double kept_mass = 0.0;
  const size_t top_k = params.top_k > 0 ? std::min<size_t>(params.top_k, n) : n;
  size_t count = params.top_k > 0 ? top_k : std::min<size_t>(top_k, 256);
  for (;; count = std::min(top_k, count * 8)) {
    kept = MostLikely(weights, count);
    double mass = 0.0;
    for (const TokenId id : kept) mass += weights[id];
    if (count < top_k && mass < params.top_p * total) continue;
    const double all = params.top_k > 0 ? mass : total;  // top_p is of what top_k leaves
    size_t size = 0;
    kept_mass = 0.0;
    while (size < kept.size() && (size == 0 || kept_mass < params.top_p * all)) {
      kept_mass += weights[kept[size++]];
    }
    kept.resize(size);
    break;
  }
  return kept[Walk(kept.size(), u * kept_mass, [&](size_t i) { return weights[kept[i]]; })];
}

}  // namespace

SampledToken Sample(absl::Span<const float> logits, const SampleRequest& request) {
  const size_t n = std::min<size_t>(logits.size(), static_cast<size_t>(request.vocab_size));
  DDL_CHECK(n > 0, "sampling needs a vocabulary");
  logits = logits.first(n);
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<float> weights(n);
  const float sum =
      kernels::SoftmaxWeights(logits.data(), static_cast<int64_t>(n), max, 1.0f, weights.data());
  const float log_sum = max + std::log(sum);

  SampledToken token;
  if (request.params.temperature == 0.0f) {
    float best = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < n; ++i) {
      if (logits[i] > best && !IsBanned(request, static_cast<TokenId>(i))) {
        best = logits[i];
        token.id = static_cast<TokenId>(i);
      }
    }
  } else {
    // The largest among the allowed sets the scale: at a low temperature the others would vanish
    // beside a banned one.
    float max_allowed = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < n; ++i) {
      if (logits[i] > max_allowed && !IsBanned(request, static_cast<TokenId>(i))) {
        max_allowed = logits[i];
      }
    }
    kernels::SoftmaxWeights(logits.data(), static_cast<int64_t>(n), max_allowed,
                            1.0f / request.params.temperature, weights.data());
    for (const TokenId id : request.banned) {
      if (id >= 0 && static_cast<size_t>(id) < n) weights[id] = 0.0f;
    }
    token.id = Draw(request, weights);
  }
  token.logprob = logits[token.id] - log_sum;
  if (request.logprobs > 0) {
    for (const TokenId id : MostLikely(logits, request.logprobs)) {
      token.top.push_back({id, logits[id] - log_sum});
    }
  }
  return token;
}

}  // namespace ddl
