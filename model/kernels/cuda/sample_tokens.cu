// Samples tokens as model/sampler.cc does. A block owns a row.
//
// What decides a token follows the CPU's order exactly: penalties, bias, exp and, with top_k or
// top_p, the double sums over tokens from the most likely down, which rank_tokens.cuh finds. Where
// the most likely chunk is not enough for top_p, the distribution is flat, and masses take the
// place of ranks. Sums over the whole vocabulary are doubles in an order of their own: they differ
// from the CPU's in the last bits of a double.

#include "model/kernels/cuda/rank_tokens.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr float kMaxFloat = 3.402823466e+38f;
constexpr int32_t kInPrompt = 1 << 30;  // in a token's count, beside how often it was generated

// exp as the CPU's kernels have it, with every multiply and add that can be one made one.
__device__ inline float Exp(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifter = 12582912.0f;
  const float shifted = MultiplyAdd(x, 1.44269504088896341f, shifter);
  const float n = Add(shifted, -shifter);
  float r = MultiplyAdd(-n, 0.693359375f, x);
  r = MultiplyAdd(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = MultiplyAdd(p, r, 1.3981999507e-3f);
  p = MultiplyAdd(p, r, 8.3334519073e-3f);
  p = MultiplyAdd(p, r, 4.1665795894e-2f);
  p = MultiplyAdd(p, r, 1.6666665459e-1f);
  p = MultiplyAdd(p, r, 5.0000001201e-1f);
  p = Add(MultiplyAdd(Multiply(p, r), r, r), 1.0f);
  return Multiply(p, FloatOfBits((FloatBits(shifted) - 0x4b400000u + 127u) << 23));
}

__device__ inline float Finite(float logit) { return fminf(fmaxf(logit, -kMaxFloat), kMaxFloat); }

// Penalties, bias and bans, on a copy of the logits in `value` [n]. `count` [n] is scratch.
__device__ inline void Adjust(const SampleRow& row, const float* logits, int n, float* value,
                              int* count) {
  const bool penalises = row.repetition_penalty != 1.0f || row.frequency_penalty != 0.0f ||
                         row.presence_penalty != 0.0f;
  const auto can_be_sampled = [&](int id) { return id >= 0 && id < n; };
  if (penalises) {
    for (int i = threadIdx.x; i < n; i += kSampleThreads) count[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.prompt_count; i += kSampleThreads) {
      if (can_be_sampled(row.prompt[i])) count[row.prompt[i]] = kInPrompt;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < row.generated_count; i += kSampleThreads) {
      if (can_be_sampled(row.generated[i])) atomicAdd(&count[row.generated[i]], 1);
    }
    __syncthreads();
  }
  ForEachOf(logits, n, [&](int i, float logit) {
    if (penalises && count[i] != 0) {
      const auto generated = static_cast<float>(count[i] & (kInPrompt - 1));
      logit =
          logit > 0.0f ? logit / row.repetition_penalty : Multiply(logit, row.repetition_penalty);
      logit = Add(logit, -Multiply(row.frequency_penalty, generated));
      if (generated > 0.0f) logit = Add(logit, -row.presence_penalty);
      logit = Finite(logit);
    }
    value[i] = logit;
  });
  __syncthreads();
  for (int i = threadIdx.x; i < row.bias_count; i += kSampleThreads) {
    const SampleBias& bias = row.bias[i];
    if (can_be_sampled(bias.id)) value[bias.id] = Finite(Add(value[bias.id], bias.bias));
  }
  __syncthreads();
  for (int i = threadIdx.x; i < row.banned_count; i += kSampleThreads) {
    if (can_be_sampled(row.banned[i])) value[row.banned[i]] = -INFINITY;
  }
  __syncthreads();
}

// A token by top_p and min_p, without ranking what they keep.
__device__ inline int SampleFlat(const SampleRow& row, const float* weight, int n, double u,
                                 const SampleShared& shared) {
  const uint64_t all = MassFrom(0, weight, n, shared);
  const auto wanted = static_cast<uint64_t>(ceil(static_cast<double>(row.top_p) * all));
  uint64_t bound = FindMass(wanted < 1 ? 1 : wanted < all ? wanted : all, weight, n, shared);
  // All tokens of at least min_p, whatever their ids. The largest weight is 1, so one is left.
  const uint64_t least = KeyOf(row.min_p, 0x7fffffff);
  if (bound < least) bound = least;
  const uint64_t kept = MassFrom(bound, weight, n, shared);
  const uint64_t target = static_cast<uint64_t>(u * static_cast<double>(kept)) + 1;
  return IdOf(FindMass(target < kept ? target : kept, weight, n, shared));
}

// The token at which the running sum of ranked weights passes u of all, among those that the
// filters keep. By one thread, in the CPU's order.
__device__ inline int WalkRanked(const SampleRow& row, const uint64_t* key, int count, double total,
                                 double u) {
  double all = total;
  if (row.top_k > 0) {
    if (count > row.top_k) count = row.top_k;
    all = 0.0;
    for (int i = 0; i < count; ++i) all += WeightOf(key[i]);
  }
  int size = 0;
  double mass = 0.0;
  while (size < count && (size == 0 || mass < row.top_p * all)) mass += WeightOf(key[size++]);
  while (size > 1 && WeightOf(key[size - 1]) < row.min_p) mass -= WeightOf(key[--size]);
  const double target = u * mass;
  double sum = 0.0;
  int last = 0;
  for (int i = 0; i < size; ++i) {
    if (WeightOf(key[i]) <= 0.0f) continue;
    sum += WeightOf(key[i]);
    last = i;
    if (sum > target) break;
  }
  return IdOf(key[last]);
}

// The part at which the running sum of `sum` [count], from `before` on, passes `target`: the last
// with any weight, should rounding let none pass. `before` becomes the running sum before it.
__device__ inline int PassingPart(const double* sum, int count, double target, double& before) {
  double running = before;
  int passing = 0;
#pragma unroll 1
  for (int part = 0; part < count; ++part) {
    if (sum[part] <= 0.0) continue;
    passing = part;
    before = running;
    running += sum[part];
    if (running > target) break;
  }
  return passing;
}

// The same without ranks, over all ids in order: first the run that u falls into, of which each
// warp sums one, then the part of that, of which each lane sums one, then the id. By one thread in
// the end, whose steps are few.
__device__ inline int WalkAll(const float* weight, int n, double u, const SampleShared& shared) {
  constexpr int kRuns = kSampleThreads / kWarp;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int run_length = (n + kRuns - 1) / kRuns;
  double run_sum = 0.0;
  for (int i = warp * run_length + lane; i < n && i < (warp + 1) * run_length; i += kWarp) {
    run_sum += weight[i];
  }
  run_sum = WarpSum(run_sum);
  if (lane == 0) shared.sum[warp] = run_sum;
  __syncthreads();
  if (warp != 0) return 0;

  double total = 0.0;
#pragma unroll
  for (int run = 0; run < kRuns; ++run) total += shared.sum[run];
  const double target = u * total;
  double before = 0.0;
  const int begin = PassingPart(shared.sum, kRuns, target, before) * run_length;
  const int end = begin + run_length < n ? begin + run_length : n;
  const int part_length = (run_length + kWarp - 1) / kWarp;
  const auto part_end = [&](int part) {
    const int last = begin + (part + 1) * part_length;
    return last < end ? last : end;
  };
  double* const part_sum = shared.sum + kRuns;
  double sum = 0.0;
  for (int i = begin + lane * part_length; i < part_end(lane); ++i) sum += weight[i];
  part_sum[lane] = sum;
  __syncwarp();
  if (lane != 0) return 0;

  const int part = PassingPart(part_sum, kWarp, target, before);
  int id = 0;
  for (int i = begin + part * part_length; i < part_end(part); ++i) {
    if (weight[i] <= 0.0f) continue;
    before += weight[i];
    id = i;
    if (before > target) break;
  }
  return id;
}

__global__ void __launch_bounds__(kSampleThreads, 1) SampleRows(SampleTokensArgs args) {
  BeginKernel();
  const int64_t r = blockIdx.x;
  const SampleRow& row = args.rows[r];
  const float* logits = args.logits + r * args.vocab;
  const int vocab = static_cast<int>(args.vocab);
  const int n = row.vocab_size < vocab ? row.vocab_size : vocab;  // that may be sampled
  // Of a row of the workspace: keys (before them: counts), then weights (before them: logits).
  auto* key = static_cast<uint64_t*>(args.workspace) + r * args.vocab;
  auto* count = reinterpret_cast<int*>(key);
  float* weight =
      reinterpret_cast<float*>(static_cast<uint64_t*>(args.workspace) + gridDim.x * args.vocab) +
      r * args.vocab;
  const SampleShared shared = SampleSharedOf();
  SampleDecision& decision = *shared.decision;

  float max = -INFINITY;
  float bad = 0.0f;
  ForEachOf(logits, vocab, [&](int /*i*/, float logit) {
    max = fmaxf(max, logit);
    if (!(fabsf(logit) <= kMaxFloat)) bad = 1.0f;
  });
  max = BlockMax<kSampleThreads>(max, shared.scratch);
  bad = BlockMax<kSampleThreads>(bad, shared.scratch);
  if (bad > 0.0f || n < 1) {
    if (threadIdx.x == 0) {
      args.id[r] = -1;
      args.logprob[r] = -INFINITY;
    }
    return;
  }
  float sum[1] = {};
  ForEachOf(logits, vocab, [&](int /*i*/, float logit) { sum[0] += Exp(Add(logit, -max)); });
  BlockSum<kSampleThreads>(sum, shared.scratch);
  const float log_sum = max + logf(sum[0]);

  Adjust(row, logits, n, weight, count);
  max = -INFINITY;  // of what may be sampled: it sets the scale
  ForEachOf(weight, n, [&](int /*i*/, float logit) { max = fmaxf(max, logit); });
  max = BlockMax<kSampleThreads>(max, shared.scratch);

  int id = 0;
  if (row.temperature == 0.0f) {
    // The first of the largest. Ids are below 2^24, so floats hold them.
    int first = n;
    ForEachOf(weight, n, [&](int i, float logit) {
      if (logit == max && i < first) first = i;
    });
    id = -static_cast<int>(BlockMax<kSampleThreads>(-static_cast<float>(first), shared.scratch));
  } else {
    const float inverse = fminf(1.0f / row.temperature, kMaxFloat);
    const bool ranks = row.top_k > 0 || row.top_p < 1.0f;
    double total[1] = {};
    ForEachOf(weight, n, [&](int i, float logit) {
      float w = logit == -INFINITY ? 0.0f : Exp(Multiply(Add(logit, -max), inverse));
      if (!ranks && w < row.min_p) w = 0.0f;
      weight[i] = w;
      total[0] += w;
    });
    __syncthreads();
    const double u = PhiloxUniform(row.seed, row.index);
    if (!ranks) {
      id = WalkAll(weight, n, u, shared);
    } else {
      BlockSum<kSampleThreads>(total, shared.sum);
      if (threadIdx.x == 0) {
        decision.bound = ~uint64_t{0};
        decision.mass = 0.0;
        decision.enough = 0;
      }
      __syncthreads();
      int ranked = 0;
      const uint64_t* all_keys = shared.key;
      bool flat = false;
      for (bool enough = false; !enough && !flat;) {
        if (ranked > 0) all_keys = key;
        RankChunk(weight, n, shared);
        const int found = decision.found;
        for (int i = threadIdx.x; i < found; i += kSampleThreads) key[ranked + i] = shared.key[i];
        ranked += found;
        if (threadIdx.x == 0) {
          if (row.top_k <= 0) {
            for (int i = 0; i < found && decision.mass < row.top_p * total[0]; ++i) {
              decision.mass += WeightOf(shared.key[i]);
            }
          }
          // None found: a loop that does not end would be worse than whatever went wrong.
          decision.enough =
              found == 0 || ranked >= n ||
              (row.top_k > 0 ? ranked >= row.top_k : decision.mass >= row.top_p * total[0]);
        }
        __syncthreads();
        enough = decision.enough != 0;
        flat = row.top_k <= 0 && !enough;
        __syncthreads();
      }
      if (flat) {
        id = SampleFlat(row, weight, n, u, shared);
      } else if (threadIdx.x == 0) {
        id = WalkRanked(row, all_keys, ranked, total[0], u);
      }
    }
  }
  if (threadIdx.x == 0) {
    args.id[r] = id;
    args.logprob[r] = logits[id] - log_sum;
  }
}

}  // namespace

int64_t SampleWorkspaceBytes(int64_t count, int64_t vocab) {
  return count * vocab * static_cast<int64_t>(sizeof(uint64_t) + sizeof(float));
}

Error SampleTokens(Stream stream, int64_t count, const SampleTokensArgs& args) {
  if (count == 0) return kSuccess;
  if (args.vocab < 1 || args.vocab > (1 << 24)) return kInvalidArgument;
  return Launch(SampleRows, Grid{count}, kSampleThreads, kSampleSharedBytes, stream, args);
}

}  // namespace ddl::kernels::cuda
