#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "base/check.h"
#include "model/kernels/philox.h"

namespace ddl {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Buffers as large as the vocabulary, kept between a thread's calls.
struct Scratch {
  std::vector<float> weights;    // of the distribution at hand, not normalised
  std::vector<float> logits;     // after penalties, bias and bans
  std::vector<int32_t> counts;   // per id, how often it was generated; 0 between calls
  std::vector<uint8_t> is_seen;  // per id; 0 between calls
  std::vector<TokenId> seen;     // each id that a penalty touches, once
  std::vector<TokenId> kept;     // what a filter keeps
};

Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

float Largest(const kernels::CpuKernels& kernels, absl::Span<const float> values) {
  return kernels.FindLargest(values.data(), static_cast<int64_t>(values.size())).value;
}

// The `count` ids whose values are largest, largest first, ties to the lower id.
void MostLikely(absl::Span<const float> values, size_t count, std::vector<TokenId>& ids) {
  const auto more_likely = [&](TokenId a, TokenId b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  };
  count = std::min(count, values.size());
  ids.clear();
  if (count == 0) return;
  // Candidates gather until there are twice as many as wanted. Then the better half stays, and who
  // comes later must be larger than its smallest: an equal one has a higher id.
  const size_t capacity = 2 * count + 64;
  float bar = -kInfinity;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(values[i] > bar)) continue;
    ids.push_back(static_cast<TokenId>(i));
    if (ids.size() < capacity) continue;
    std::nth_element(ids.begin(), ids.begin() + (count - 1), ids.end(), more_likely);
    ids.resize(count);
    bar = values[ids.back()];
  }
  count = std::min(count, ids.size());
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), more_likely);
  ids.resize(count);
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

// Keeps in scratch.kept, most likely first, what top_k and then top_p leave of scratch.weights.
// Returns the weight of what is kept.
double FilterByRankAndMass(const SamplingParams& params, double total, Scratch& scratch) {
  const absl::Span<const float> weights = scratch.weights;
  const size_t n = weights.size();
  // Most distributions have their mass in a few tokens: look at more only when these do not do.
  const size_t top_k = params.top_k > 0 ? std::min<size_t>(params.top_k, n) : n;
  size_t count = params.top_k > 0 ? top_k : std::min<size_t>(top_k, 256);
  for (;; count = std::min(top_k, count * 8)) {
    MostLikely(weights, count, scratch.kept);
    double mass = 0.0;
    for (const TokenId id : scratch.kept) mass += weights[id];
    if (count < top_k && mass < params.top_p * total) continue;
    const double all = params.top_k > 0 ? mass : total;  // top_p is of what top_k leaves
    size_t size = 0;
    double kept_mass = 0.0;
    while (size < scratch.kept.size() && (size == 0 || kept_mass < params.top_p * all)) {
      kept_mass += weights[scratch.kept[size++]];
    }
    scratch.kept.resize(size);
    return kept_mass;
  }
}

// Samples by scratch.weights [vocab]. The most probable token weighs 1, banned ids 0.
TokenId SampleByWeight(const SamplingParams& params, uint64_t index, Scratch& scratch) {
  const double u = kernels::PhiloxUniform(params.seed, index);
  std::vector<float>& weights = scratch.weights;
  const bool ranks = params.top_k > 0 || params.top_p < 1.0f;
  if (!ranks) {
    double total = 0.0;
    for (float& weight : weights) {
      if (weight < params.min_p) weight = 0.0f;
      total += weight;
    }
    return static_cast<TokenId>(
        Walk(weights.size(), u * total, [&](size_t i) { return weights[i]; }));
  }
  double total = 0.0;
  for (const float weight : weights) total += weight;
  double mass = FilterByRankAndMass(params, total, scratch);
  std::vector<TokenId>& kept = scratch.kept;
  while (kept.size() > 1 && weights[kept.back()] < params.min_p) {
    mass -= weights[kept.back()];
    kept.pop_back();
  }
  return kept[Walk(kept.size(), u * mass, [&](size_t i) { return weights[kept[i]]; })];
}

bool HasPenalties(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.frequency_penalty != 0.0f ||
         params.presence_penalty != 0.0f;
}

float Finite(float logit) {
  constexpr float kMax = std::numeric_limits<float>::max();
  return std::clamp(logit, -kMax, kMax);
}

// Repetition, frequency and presence penalties on `scratch.logits`, in time proportional to the
// tokens that count.
void Penalise(const SamplingParams& params, const SampleRequest& request, Scratch& scratch) {
  std::vector<float>& logits = scratch.logits;
  if (scratch.counts.size() < logits.size()) {
    scratch.counts.resize(logits.size(), 0);
    scratch.is_seen.resize(logits.size(), 0);
  }
  scratch.seen.clear();
  const auto see = [&](TokenId id, int32_t generated) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) return;  // a padding row's
    if (!scratch.is_seen[id]) scratch.seen.push_back(id);
    scratch.is_seen[id] = 1;
    scratch.counts[id] += generated;
  };
  if (params.repetition_penalty != 1.0f) {
    for (const TokenId id : request.prompt) see(id, 0);
  }
  for (const TokenId id : request.generated) see(id, 1);
  for (const TokenId id : scratch.seen) {
    float logit = logits[id];
    logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    const auto count = static_cast<float>(scratch.counts[id]);
    logit -= params.frequency_penalty * count;
    if (count > 0.0f) logit -= params.presence_penalty;
    logits[id] = Finite(logit);
    scratch.counts[id] = 0;
    scratch.is_seen[id] = 0;
  }
}

// The logits that sampling starts from: the model's, or scratch.logits if something changes them.
// Banned ids get minus infinity.
absl::Span<const float> Adjust(absl::Span<const float> logits, const SamplingParams& params,
                               const SampleRequest& request, Scratch& scratch) {
  const bool penalises = HasPenalties(params);
  if (!penalises && params.logit_bias.empty() && request.banned.empty()) return logits;
  const auto can_be_sampled = [&](TokenId id) {
    return id >= 0 && static_cast<size_t>(id) < logits.size();
  };
  scratch.logits.assign(logits.begin(), logits.end());
  if (penalises) Penalise(params, request, scratch);
  for (const LogitBias& bias : params.logit_bias) {
    if (can_be_sampled(bias.id))
      scratch.logits[bias.id] = Finite(scratch.logits[bias.id] + bias.bias);
  }
  for (const TokenId id : request.banned) {
    if (can_be_sampled(id)) scratch.logits[id] = -kInfinity;
  }
  return scratch.logits;
}

// Logarithm of the sum of exp(logit). Leaves exp(logit - max) in scratch.weights.
float LogSum(const kernels::CpuKernels& kernels, absl::Span<const float> logits, float max,
             Scratch& scratch) {
  scratch.weights.resize(logits.size());
  const float sum = kernels.SoftmaxWeights(logits.data(), static_cast<int64_t>(logits.size()), max,
                                           1.0f, scratch.weights.data());
  return max + std::log(sum);
}

SampledToken Report(absl::Span<const float> logits, float log_sum, TokenId id, int32_t logprobs,
                    Scratch& scratch) {
  SampledToken token;
  token.id = id;
  token.logprob = static_cast<size_t>(id) < logits.size() ? logits[id] - log_sum : -kInfinity;
  if (logprobs > 0) {
    MostLikely(logits, static_cast<size_t>(logprobs), scratch.kept);
    for (const TokenId top : scratch.kept) token.top.push_back({top, logits[top] - log_sum});
  }
  return token;
}

absl::Span<const float> WithoutPadding(absl::Span<const float> logits, TokenId vocab_size) {
  const size_t n = std::min<size_t>(logits.size(), static_cast<size_t>(vocab_size));
  DDL_CHECK(n > 0, "sampling needs a vocabulary");
  return logits.first(n);
}

}  // namespace

SampledToken Sample(const kernels::CpuKernels& kernels, absl::Span<const float> logits,
                    const SampleRequest& request) {
  static const SamplingParams kDefaults;
  const SamplingParams& params = request.params != nullptr ? *request.params : kDefaults;
  Scratch& scratch = ThreadScratch();
  const float max = Largest(kernels, logits);
  const float log_sum = LogSum(kernels, logits, max, scratch);
  const bool is_padded = static_cast<size_t>(request.vocab_size) < logits.size();
  logits = WithoutPadding(logits, request.vocab_size);
  scratch.weights.resize(logits.size());

  const absl::Span<const float> adjusted = Adjust(logits, params, request, scratch);
  const bool is_adjusted = is_padded || adjusted.data() != logits.data();
  TokenId id = 0;
  // The largest that may be sampled sets the scale: at a low temperature the others would vanish
  // beside a banned one or a padding row's.
  const float adjusted_max = is_adjusted ? Largest(kernels, adjusted) : max;
  if (params.temperature == 0.0f) {
    id = static_cast<TokenId>(std::find(adjusted.begin(), adjusted.end(), adjusted_max) -
                              adjusted.begin());
  } else {
    const float inverse = std::min(1.0f / params.temperature, std::numeric_limits<float>::max());
    if (is_adjusted || inverse != 1.0f) {  // otherwise LogSum left the same weights
      kernels.SoftmaxWeights(adjusted.data(), static_cast<int64_t>(adjusted.size()), adjusted_max,
                             inverse, scratch.weights.data());
    }
    for (const TokenId banned : request.banned) {
      if (banned >= 0 && static_cast<size_t>(banned) < adjusted.size()) {
        scratch.weights[banned] = 0.0f;
      }
    }
    id = SampleByWeight(params, request.index, scratch);
  }
  return Report(logits, log_sum, id, request.logprobs, scratch);
}

SampledToken Score(const kernels::CpuKernels& kernels, absl::Span<const float> logits,
                   TokenId target, TokenId vocab_size, int32_t logprobs) {
  Scratch& scratch = ThreadScratch();
  const float log_sum = LogSum(kernels, logits, Largest(kernels, logits), scratch);
  return Report(WithoutPadding(logits, vocab_size), log_sum, target, logprobs, scratch);
}

}  // namespace ddl
