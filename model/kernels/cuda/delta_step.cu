// One sublayer boundary. A block owns a row: it reads X once, keeps it in shared memory across the
// first sum (|h|^2 and h . X[:, j] together), rewrites and writes it in the pass that also reads it
// for the next sublayer, and after the second sum (x_in^2 and the products for v and beta together)
// writes c. docs/cuda.md derives this.
//
// A thread meets the same features in every pass, so what it left in shared memory is its own and
// needs no barrier.

#include "model/kernels/cuda/block.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxChannels = 8;
constexpr int64_t kMaxFeatures = 16384;
constexpr int64_t kMaxTaps = 64;
// What any device that we build for gives a block (sm_89: 99 KB), less a little. Rows larger than
// this are read from memory a second time.
constexpr int64_t kMaxSharedBytes = 96 * 1024;

// What a launch does with its rows.
struct Phases {
  bool rewrite = false;  // X by the sublayer before
  bool read = false;     // x_in, c and gates for the sublayer after
  bool tails = false;    // TC with one row per sequence: leave the tail for the next
  bool keep = false;     // the row of X fits into shared memory
};

// Offsets in shared memory, in bytes.
struct Layout {
  int64_t x_in;    // float [d]
  int64_t hidden;  // float [beta_hidden]
  int64_t row;     // T [d, dv]
  int64_t end;
};

__host__ __device__ inline int64_t RoundUp16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

__host__ __device__ inline Layout LayoutOf(const DeltaStepArgs& args, const Phases& phases,
                                           int64_t element_bytes) {
  Layout layout;
  layout.x_in = kThreads / kWarp * (2 + kMaxChannels) * static_cast<int64_t>(sizeof(float));
  layout.hidden = layout.x_in + (phases.read ? RoundUp16(args.d * 4) : 0);
  const bool hidden = phases.read && args.gates && args.gate.beta_in != nullptr;
  layout.row = layout.hidden + (hidden ? RoundUp16(args.gate.beta_hidden * 4) : 0);
  layout.end = layout.row + (phases.keep ? args.d * args.dv * element_bytes : 0);
  return layout;
}

// sum_j w[j] x[j] of feature `i` of a pack. One order on every path of TC.
template <int kDv, int kElements, typename T>
__device__ float Tap(const float* w, const Pack<T, kElements>& x, int i, int dv) {
  float sum = 0.0f;
  if constexpr (kDv > 0) {
    const Pack<float, kDv> weight = LoadPack<kDv>(w);
#pragma unroll
    for (int j = 0; j < kDv; ++j) {
      sum = MultiplyAdd(weight.element[j], ToFloat(x.element[i * kDv + j]), sum);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kMaxChannels; ++j) {
      if (j < dv) sum = MultiplyAdd(w[j], ToFloat(x.element[j]), sum);
    }
  }
  return sum;
}

// `kGroup` features of a row of X, [kGroup, dv]. kDv = 0: dv is only known now, and kGroup is 1.
template <int kDv, int kGroup, typename T>
__device__ auto LoadFeatures(const T* x, int dv) {
  if constexpr (kDv > 0) {
    return LoadPack<kGroup * kDv>(x);
  } else {
    Pack<T, kMaxChannels> pack = {};
#pragma unroll
    for (int j = 0; j < kMaxChannels; ++j) {
      if (j < dv) pack.element[j] = x[j];
    }
    return pack;
  }
}

template <int kDv, int kGroup, typename T, int kElements>
__device__ void StoreFeatures(T* x, const Pack<T, kElements>& pack, int dv) {
  if constexpr (kDv > 0) {
    StorePack(x, pack);
  } else {
#pragma unroll
    for (int j = 0; j < kMaxChannels; ++j) {
      if (j < dv) x[j] = pack.element[j];
    }
  }
}

// Two-layer beta from c, which is in shared memory and complete.
__device__ inline float HiddenLogit(const DeltaStepArgs& args, const float* c, float* hidden) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t n = warp; n < args.gate.beta_hidden; n += kThreads / kWarp) {
    const float* w = args.gate.beta_in + n * args.d;
    float dot = 0.0f;
    for (int64_t i = lane; i < args.d; i += kWarp) dot += w[i] * c[i];
    dot = WarpSum(dot);
    if (lane == 0) hidden[n] = args.gate.beta_weight[n] * tanhf(dot);
  }
  __syncthreads();
  float logit = 0.0f;
  for (int64_t n = lane; n < args.gate.beta_hidden; n += kWarp) logit += hidden[n];
  return WarpSum(logit);
}

template <typename T, int kDv, int kGroup, bool kOverTokens>
__global__ void __launch_bounds__(kThreads, 4)
    DeltaStepRows(DeltaStepArgs args, Batch batch, Phases phases) {
  constexpr int kChannels = kDv > 0 ? kDv : kMaxChannels;
  const int64_t t = blockIdx.x;
  const int d = static_cast<int>(args.d);
  const int dv = kDv > 0 ? kDv : static_cast<int>(args.dv);
  const int groups = d / kGroup;
  unsigned char* shared = SharedMemory();
  const Layout layout = LayoutOf(args, phases, sizeof(T));
  float* scratch = reinterpret_cast<float*>(shared);
  float* x_in = reinterpret_cast<float*>(shared + layout.x_in);
  float* hidden = reinterpret_cast<float*>(shared + layout.hidden);
  T* x = static_cast<T*>(args.x) + t * d * dv;
  T* row = phases.keep ? reinterpret_cast<T*>(shared + layout.row) : x;
  const T* h = phases.rewrite ? static_cast<const T*>(args.h) + t * d : nullptr;
  const bool delta = phases.rewrite && args.rewrite == Rewrite::kDelta;

  // X += h step^T with step = r beta (v - k^T X) / |h|, k = h / |h|.
  float step[kChannels];
  if (delta) {
    float old_v[kChannels];
#pragma unroll
    for (int j = 0; j < kChannels; ++j) old_v[j] = j < dv ? args.v[t * dv + j] : 0.0f;
    const float beta = args.residual_multiplier * args.beta[t];
    float sum[1 + kChannels] = {};
#pragma unroll 2
    for (int g = threadIdx.x; g < groups; g += kThreads) {
      const auto h_pack = LoadPack<kGroup>(h + g * kGroup);
      const auto x_pack = LoadFeatures<kDv, kGroup>(x + g * kGroup * dv, dv);
      if (phases.keep) StoreFeatures<kDv, kGroup>(row + g * kGroup * dv, x_pack, dv);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const float value = ToFloat(h_pack.element[i]);
        sum[0] += value * value;
#pragma unroll
        for (int j = 0; j < kChannels; ++j) {
          sum[1 + j] += value * ToFloat(x_pack.element[i * kChannels + j]);
        }
      }
    }
    BlockSum(sum, scratch);
    const float inverse_norm = 1.0f / sqrtf(sum[0] + args.k_eps * args.k_eps);
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      step[j] = inverse_norm * beta * (old_v[j] - inverse_norm * sum[1 + j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kChannels; ++j) step[j] = args.residual_multiplier;  // X += r h
    row = x;
  }

  // TC: where the taps before this row's come from.
  [[maybe_unused]] int64_t first = t;              // the sequence's first row in this batch
  [[maybe_unused]] const float* source = nullptr;  // what rows before it have left; null: nothing
  if constexpr (kOverTokens) {
    const int64_t sequence = batch.row_sequence[t];
    first = batch.row_begin[sequence];
    if (batch.position[first] > 0) {
      source = args.tail + TailSource(batch, sequence) * args.tail_stride;
    }
  }

  // Rewrite and read. sum: x_in^2, w_beta . (w_norm x_in), W_v x_in.
  const GateWeights& gate = args.gate;
  const bool linear_beta = phases.read && args.gates && gate.beta_in == nullptr;
  const bool linear_v = phases.read && args.gates && gate.v_weight != nullptr;
  float sum[2 + kChannels] = {};
#pragma unroll 1
  for (int g = threadIdx.x; g < groups; g += kThreads) {
    const int feature = g * kGroup;
    auto x_pack = LoadFeatures<kDv, kGroup>(row + feature * dv, dv);
    if (phases.rewrite) {
      const auto h_pack = LoadPack<kGroup>(h + feature);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const float value = ToFloat(h_pack.element[i]);
#pragma unroll
        for (int j = 0; j < kChannels; ++j) {
          T& element = x_pack.element[i * kChannels + j];
          element = FromFloat<T>(MultiplyAdd(value, step[j], ToFloat(element)));
        }
      }
      StoreFeatures<kDv, kGroup>(x + feature * dv, x_pack, dv);
    }
    if (!phases.read) continue;

    // From X as stored, so that fusing the rewrite and the read changes nothing.
    Pack<float, kGroup> in;
    if constexpr (kOverTokens) {
      // Oldest first: the tail has the taps before `first`, then come rows `first` to t.
      const int64_t taps = args.taps;
      const bool from_tail = source != nullptr && t - first < taps - 1;
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        in.element[i] = from_tail ? source[(t - first) * d + feature + i] : 0.0f;
      }
      const int64_t oldest = t - taps + 1 > first ? t - taps + 1 : first;
      for (int64_t s = oldest; s < t; ++s) {
        const T* x_then = static_cast<const T*>(args.x) + (s * d + feature) * dv;
        const auto then_pack = LoadFeatures<kDv, kGroup>(x_then, dv);
        const float* w = args.compress_weight + ((taps - 1 - (t - s)) * d + feature) * dv;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          in.element[i] = Add(in.element[i], Tap<kDv>(w + i * dv, then_pack, i, dv));
        }
      }
      const float* w = args.compress_weight + ((taps - 1) * d + feature) * dv;
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        in.element[i] = Add(in.element[i], Tap<kDv>(w + i * dv, x_pack, i, dv));
      }
      if (phases.tails) {  // this row is its sequence's only one: a_n <- a_{n+1} + W_{k-1-n} X
        float* target = args.tail + batch.slot[batch.row_sequence[t]] * args.tail_stride;
        const int64_t save = batch.row_save != nullptr ? batch.row_save[t] : -1;
        for (int64_t n = 0; n + 1 < taps; ++n) {
          const float* w_n = args.compress_weight + ((taps - 2 - n) * d + feature) * dv;
          const bool carry = source != nullptr && n + 2 < taps;
#pragma unroll
          for (int i = 0; i < kGroup; ++i) {
            const float before = carry ? source[(n + 1) * d + feature + i] : 0.0f;
            const float after = Add(before, Tap<kDv>(w_n + i * dv, x_pack, i, dv));
            target[n * d + feature + i] = after;
            if (save >= 0) args.tail[save * args.tail_stride + n * d + feature + i] = after;
          }
        }
      }
    } else if (args.compress == Compress::kIdentity) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) in.element[i] = ToFloat(x_pack.element[i * kChannels]);
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        in.element[i] =
            Tap<kDv>(args.compress_weight + static_cast<int64_t>(feature + i) * dv, x_pack, i, dv);
      }
    }
    StorePack(x_in + feature, in);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sum[0] += in.element[i] * in.element[i];
    if (linear_beta) {
      const auto norm = LoadPack<kGroup>(args.norm_weight + feature);
      const auto weight = LoadPack<kGroup>(gate.beta_weight + feature);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        sum[1] += weight.element[i] * (norm.element[i] * in.element[i]);
      }
    }
    if (linear_v) {
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        if (j < dv) {
          const auto weight =
              LoadPack<kGroup>(gate.v_weight + static_cast<int64_t>(j) * d + feature);
#pragma unroll
          for (int i = 0; i < kGroup; ++i) sum[2 + j] += weight.element[i] * in.element[i];
        }
      }
    }
  }
  if (!phases.read) return;

  BlockSum(sum, scratch);
  const float scale = 1.0f / sqrtf(sum[0] / static_cast<float>(d) + args.norm_eps);
  const bool hidden_beta = args.gates && gate.beta_in != nullptr;
  for (int g = threadIdx.x; g < groups; g += kThreads) {
    const int feature = g * kGroup;
    const auto in = LoadPack<kGroup>(x_in + feature);
    const auto norm = LoadPack<kGroup>(args.norm_weight + feature);
    Pack<float, kGroup> c;
    Pack<T, kGroup> c_out, in_out;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      c.element[i] = norm.element[i] * (in.element[i] * scale);
      c_out.element[i] = FromFloat<T>(c.element[i]);
      in_out.element[i] = FromFloat<T>(in.element[i]);
    }
    StorePack(static_cast<T*>(args.c) + t * d + feature, c_out);
    if (args.x_in != nullptr) StorePack(static_cast<T*>(args.x_in) + t * d + feature, in_out);
    if (hidden_beta) StorePack(x_in + feature, c);
  }
  if (!args.gates) return;

  float logit = sum[1] * scale;
  if (hidden_beta) {
    __syncthreads();
    logit = HiddenLogit(args, x_in, hidden);
  }
  if (threadIdx.x == 0) {
    args.beta[t] = 2.0f * Sigmoid(logit + gate.beta_bias);
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      if (j >= dv) continue;
      float v = gate.v_constant;
      if (gate.v_weight != nullptr) {
        v = sum[2 + j] + gate.v_bias[j];
        if (gate.v_sigmoid) v = gate.v_scale * Sigmoid(v);
      }
      args.v[t * dv + j] = v;
    }
  }
}

// |r beta k (v - k^T X)| / |X| of each row, before its rewrite. The update is h step^T, so its size
// is |h| |step|. Only asked for now and then: reading X once more is cheaper than a sum more in
// every rewrite.
template <typename T>
__global__ void __launch_bounds__(kThreads) UpdateRatioRows(DeltaStepArgs args) {
  const int64_t t = blockIdx.x;
  const int d = static_cast<int>(args.d), dv = static_cast<int>(args.dv);
  const T* h = static_cast<const T*>(args.h) + t * d;
  const T* x = static_cast<const T*>(args.x) + t * d * dv;
  float sum[2 + kMaxChannels] = {};  // |h|^2, |X|^2, h . X[:, j]
  for (int i = threadIdx.x; i < d; i += kThreads) {
    const float value = ToFloat(h[i]);
    const auto x_pack = LoadFeatures<0, 1>(x + static_cast<int64_t>(i) * dv, dv);
    sum[0] += value * value;
#pragma unroll
    for (int j = 0; j < kMaxChannels; ++j) {  // 0 from dv on
      const float element = ToFloat(x_pack.element[j]);
      sum[1] += element * element;
      sum[2 + j] += value * element;
    }
  }
  BlockSum(sum, reinterpret_cast<float*>(SharedMemory()));
  if (threadIdx.x != 0) return;
  const float inverse_norm = 1.0f / sqrtf(sum[0] + args.k_eps * args.k_eps);
  const float beta = args.residual_multiplier * args.beta[t];
  float step_squared = 0.0f;
#pragma unroll
  for (int j = 0; j < kMaxChannels; ++j) {
    if (j >= dv) continue;
    const float step = inverse_norm * beta * (args.v[t * dv + j] - inverse_norm * sum[2 + j]);
    step_squared += step * step;
  }
  args.update_ratio[t] = sum[1] > 0.0f ? sqrtf(sum[0] / sum[1] * step_squared) : 0.0f;
}

// TC: the tails as they are after rows `first` to `end` - 1 of a sequence, for feature i. `target`
// may be `source`: a_n is written once a_{n + rows} is read.
template <typename T, int kDv>
__device__ void LeaveTail(const DeltaStepArgs& args, int64_t first, int64_t end, int64_t i,
                          const float* source, float* target) {
  const int64_t taps = args.taps, d = args.d;
  const int dv = kDv > 0 ? kDv : static_cast<int>(args.dv);
  for (int64_t n = 0; n + 1 < taps; ++n) {
    const int64_t output = end + n;  // the row that a_{n+1} is for
    const int64_t carried = end - first + n;
    float sum = source != nullptr && carried < taps - 1 ? source[carried * d + i] : 0.0f;
    const int64_t oldest = output - taps + 1 > first ? output - taps + 1 : first;
    for (int64_t s = oldest; s < end; ++s) {
      const auto x_pack =
          LoadFeatures<kDv, 1>(static_cast<const T*>(args.x) + (s * d + i) * dv, dv);
      const float* w = args.compress_weight + ((taps - 1 - (output - s)) * d + i) * dv;
      sum = Add(sum, Tap<kDv>(w, x_pack, 0, dv));
    }
    target[n * d + i] = sum;
  }
}

// A block owns a sequence and a thread whole features. The tails that rows in the middle leave come
// first: they still start from the source.
template <typename T, int kDv>
__global__ void __launch_bounds__(kThreads, 4) TokenTails(DeltaStepArgs args, Batch batch) {
  const int64_t sequence = blockIdx.x;
  const int64_t first = batch.row_begin[sequence], end = batch.row_begin[sequence + 1];
  const auto tail = [&](int64_t slot) { return args.tail + slot * args.tail_stride; };
  const float* source = batch.position[first] > 0 ? tail(TailSource(batch, sequence)) : nullptr;
  for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < args.d; i += gridDim.y * kThreads) {
    for (int64_t t = first; batch.row_save != nullptr && t < end; ++t) {
      if (batch.row_save[t] < 0) continue;
      LeaveTail<T, kDv>(args, first, t + 1, i, source, tail(batch.row_save[t]));
    }
    LeaveTail<T, kDv>(args, first, end, i, source, tail(batch.slot[sequence]));
  }
}

template <typename T, int kDv, int kGroup, bool kOverTokens>
Error LaunchRows(Stream stream, const Batch& batch, const DeltaStepArgs& args, Phases phases) {
  if (phases.rewrite && args.rewrite == Rewrite::kDelta) {
    phases.keep = true;
    phases.keep = LayoutOf(args, phases, sizeof(T)).end <= kMaxSharedBytes;
  }
  return Launch(DeltaStepRows<T, kDv, kGroup, kOverTokens>, Grid{batch.tokens}, kThreads,
                LayoutOf(args, phases, sizeof(T)).end, stream, args, batch, phases);
}

template <typename T, int kDv, int kGroup>
Error LaunchAll(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  if (args.rewrite == Rewrite::kDelta && args.update_ratio != nullptr) {
    constexpr int64_t kSums = kThreads / kWarp * (2 + kMaxChannels);
    const Error error = Launch(UpdateRatioRows<T>, Grid{batch.tokens}, kThreads,
                               kSums * static_cast<int64_t>(sizeof(float)), stream, args);
    if (error != kSuccess) return error;
  }
  Phases phases;
  phases.rewrite = args.rewrite != Rewrite::kNone;
  phases.read = true;
  if (args.compress != Compress::kToken) {
    return LaunchRows<T, kDv, kGroup, false>(stream, batch, args, phases);
  }
  if (batch.tokens == batch.sequences) {
    phases.tails = true;
    return LaunchRows<T, kDv, kGroup, true>(stream, batch, args, phases);
  }
  // A row reads its predecessors' X as rewritten, and the tail before it is written anew: three
  // kernels, since nothing else orders blocks.
  if (phases.rewrite) {
    phases.read = false;
    const Error error = LaunchRows<T, kDv, kGroup, false>(stream, batch, args, phases);
    if (error != kSuccess) return error;
  }
  phases.rewrite = false;
  phases.read = true;
  const Error error = LaunchRows<T, kDv, kGroup, true>(stream, batch, args, phases);
  if (error != kSuccess) return error;
  return Launch(TokenTails<T, kDv>, Grid{batch.sequences, DivideUp(args.d, kThreads)}, kThreads, 0,
                stream, args, batch);
}

// Whether every pack of `group` features of every tensor is aligned for its access.
bool CanGroup(const DeltaStepArgs& args, int64_t group, int64_t element_bytes) {
  const int64_t d = args.d, dv = args.dv;
  const auto aligned = [&](const void* p, int64_t row_elements, int64_t group_elements,
                           int64_t bytes) {
    const int64_t access = group_elements * bytes < 16 ? group_elements * bytes : 16;
    return IsAligned(p, row_elements * bytes, access);
  };
  return d % group == 0 && aligned(args.x, d * dv, group * dv, element_bytes) &&
         aligned(args.h, d, group, element_bytes) && aligned(args.c, d, group, element_bytes) &&
         aligned(args.x_in, d, group, element_bytes) && aligned(args.norm_weight, d, group, 4) &&
         aligned(args.gate.beta_in == nullptr ? args.gate.beta_weight : nullptr, d, group, 4) &&
         aligned(args.gate.v_weight, d, group, 4) && aligned(args.compress_weight, d * dv, dv, 4);
}

template <typename T, int kDv>
Error LaunchDv(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  constexpr int kGroup = static_cast<int>(16 / sizeof(T)) / kDv;
  if constexpr (kGroup > 1) {
    if (CanGroup(args, kGroup, sizeof(T))) {
      return LaunchAll<T, kDv, kGroup>(stream, batch, args);
    }
  }
  if (CanGroup(args, 1, sizeof(T))) return LaunchAll<T, kDv, 1>(stream, batch, args);
  return LaunchAll<T, 0, 1>(stream, batch, args);
}

template <typename T>
Error LaunchType(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  switch (args.dv) {
    case 1:
      return LaunchDv<T, 1>(stream, batch, args);
    case 2:
      return LaunchDv<T, 2>(stream, batch, args);
    case 4:
      return LaunchDv<T, 4>(stream, batch, args);
    case 8:
      return LaunchDv<T, 8>(stream, batch, args);
    default:
      return LaunchAll<T, 0, 1>(stream, batch, args);
  }
}

}  // namespace

Error DeltaStep(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  if (batch.tokens == 0) return kSuccess;
  if (args.dv < 1 || args.dv > kMaxChannels || args.d < 1 || args.d > kMaxFeatures ||
      (args.compress == Compress::kToken && (args.taps < 1 || args.taps > kMaxTaps)) ||
      args.gate.beta_hidden > kMaxFeatures / 4) {
    return kInvalidArgument;
  }
  return args.type == Type::kFloat32 ? LaunchType<float>(stream, batch, args)
                                     : LaunchType<BFloat16>(stream, batch, args);
}

}  // namespace ddl::kernels::cuda
