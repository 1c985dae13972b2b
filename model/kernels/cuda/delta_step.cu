// One sublayer boundary. A block owns a row: it reads X and h once, all of it before the first sum
// (|h|^2 and h . X[:, j] together), rewrites and writes X in the pass that also reads it for the
// next sublayer, and after the second sum (x_in^2 and the products for v and beta together) writes
// c. docs/cuda.md derives this.
//
// A thread meets the same features in every pass, and keeps them in registers meanwhile: kTrips
// packs of X, a compile-time number, so that all of its loads are in flight at once. Rows too long
// for that, and tensors that are not aligned, take kTrips = 0: a loop of any length, which reads X
// a second time and leaves x_in in shared memory. What nearly all boundaries are in bfloat16 has
// kCommon kernels, where d is known as well, and no thread is left over.

#include "model/kernels/cuda/delta_step.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;  // of all but kCommon kernels
constexpr int64_t kMaxFeatures = 16384;
constexpr int64_t kMaxTaps = 64;
// What a launch does with its rows.
struct Phases {
  bool rewrite = false;  // X by the sublayer before
  bool read = false;     // x_in, c and gates for the sublayer after
  bool tails = false;    // TC with one row per sequence: leave the tail for the next
};

// Offsets in shared memory, in bytes.
struct Layout {
  int64_t x_in;    // float [d], then c
  int64_t hidden;  // float [beta_hidden]
  int64_t end;
};

__host__ __device__ inline int64_t RoundUp16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// `warps`: of a block. `held`: whether threads keep x_in in registers. The two-layer beta reads all
// of c, from x_in's place.
__host__ __device__ inline Layout LayoutOf(const DeltaStepArgs& args, const Phases& phases,
                                           int warps, bool held) {
  const bool hidden = phases.read && args.gates && args.gate.beta_in != nullptr;
  Layout layout;
  layout.x_in = warps * (2 + kMaxChannels) * static_cast<int64_t>(sizeof(float));
  layout.hidden = layout.x_in + (phases.read && (!held || hidden) ? RoundUp16(args.d * 4) : 0);
  layout.end = layout.hidden + (hidden ? RoundUp16(args.gate.beta_hidden * 4) : 0);
  return layout;
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

// What a kCommon kernel takes for granted: a boundary between two sublayers of a model of the
// paper, by the delta rule, with compress over channels (dv = 1: none), v and beta from one layer,
// and x_in not wanted.
template <int kDv>
bool IsCommon(const DeltaStepArgs& args, const Phases& phases) {
  return phases.rewrite && phases.read && args.rewrite == Rewrite::kDelta && args.gates &&
         args.gate.beta_in == nullptr && args.gate.v_weight != nullptr && args.x_in == nullptr &&
         args.compress == (kDv == 1 ? Compress::kIdentity : Compress::kChannel) &&
         (args.d == 768 || args.d == 1024 || args.d == 2048);
}

// As a template's parameters.
template <int kBlockThreads, int kBlocks>
struct Shape {
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocks = kBlocks;  // on a multiprocessor: bounds the registers
};
template <int kTrips>
using AnyShape = Shape<kThreads, kTrips == 8 ? 2 : 4>;

template <typename T, int kDv, int kGroup, int kTrips, bool kCommon, bool kOverTokens,
          typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMinBlocks)
    DeltaStepRows(DeltaStepArgs args, Batch batch, Phases phases) {
  BeginKernel();
  constexpr int kThreads = Shape::kThreads;
  constexpr int kChannels = kDv > 0 ? kDv : kMaxChannels;
  constexpr bool kHeld = kTrips > 0;
  constexpr int kPacks = kHeld ? kTrips : 1;
  const int64_t t = blockIdx.x;
  const int d = kCommon ? kTrips * kThreads * kGroup : static_cast<int>(args.d);
  const int dv = kDv > 0 ? kDv : static_cast<int>(args.dv);
  const int groups = d / kGroup;
  const bool rewrite = kCommon || phases.rewrite, read = kCommon || phases.read;
  const bool delta = kCommon || (rewrite && args.rewrite == Rewrite::kDelta);
  const bool gates = kCommon || (read && args.gates);
  const GateWeights& gate = args.gate;
  const bool hidden_beta = !kCommon && gates && gate.beta_in != nullptr;
  const bool linear_beta = kCommon || (gates && gate.beta_in == nullptr);
  const bool linear_v = kCommon || (gates && gate.v_weight != nullptr);
  unsigned char* shared = SharedMemory();
  const Layout layout = LayoutOf(args, phases, kThreads / kWarp, kHeld);
  float* scratch = reinterpret_cast<float*>(shared);
  float* x_in = reinterpret_cast<float*>(shared + layout.x_in);
  T* x = static_cast<T*>(args.x) + t * d * dv;
  const T* h = rewrite ? static_cast<const T*>(args.h) + t * d : nullptr;

  // Calls body(n, feature) for this thread's packs of features, the n-th of those it holds.
  const auto for_packs = [&](auto body) {
    if constexpr (kHeld) {
#pragma unroll
      for (int n = 0; n < kTrips; ++n) {
        const int g = n * kThreads + static_cast<int>(threadIdx.x);
        if (kCommon || g < groups) body(n, g * kGroup);
      }
    } else {
#pragma unroll 1
      for (int g = threadIdx.x; g < groups; g += kThreads) body(0, g * kGroup);
    }
  };
  Pack<T, kGroup * kChannels> x_pack[kPacks] = {};
  Pack<T, kGroup> h_pack[kPacks] = {};
  Pack<float, kGroup> in_pack[kPacks] = {};
  const auto load = [&](int n, int feature) {
    x_pack[n] = LoadFeatures<kDv, kGroup>(x + feature * dv, dv);
    if (rewrite) h_pack[n] = LoadPack<kGroup>(h + feature);
  };
  if constexpr (kHeld) for_packs(load);

  // X += h step^T with step = r beta (v - k^T X) / |h|, k = h / |h|.
  float step[kChannels];
  if (delta) {
    float old_v[kChannels];
#pragma unroll
    for (int j = 0; j < kChannels; ++j) old_v[j] = j < dv ? args.v[t * dv + j] : 0.0f;
    const float beta = args.residual_multiplier * args.beta[t];
    float sum[1 + kChannels] = {};
    for_packs([&](int n, int feature) {
      if constexpr (!kHeld) load(n, feature);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const float value = ToFloat(h_pack[n].element[i]);
        sum[0] += value * value;
#pragma unroll
        for (int j = 0; j < kChannels; ++j) {
          sum[1 + j] += value * ToFloat(x_pack[n].element[i * kChannels + j]);
        }
      }
    });
    BlockSum<kThreads>(sum, scratch);
    const float inverse_norm = InverseSqrt(sum[0] + args.k_eps * args.k_eps);
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      step[j] = inverse_norm * beta * (old_v[j] - inverse_norm * sum[1 + j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kChannels; ++j) step[j] = args.residual_multiplier;  // X += r h
  }

  // TC: where the taps before this row's come from.
  [[maybe_unused]] int before = 0;                 // rows of the sequence in this batch before t
  [[maybe_unused]] const float* source = nullptr;  // what rows before it have left; null: nothing
  if constexpr (kOverTokens) {
    const int64_t sequence = batch.row_sequence[t];
    const int first = batch.row_begin[sequence];
    before = static_cast<int>(t) - first;
    if (batch.position[first] > 0) {
      source = args.tail + TailSource(batch, sequence) * args.tail_stride;
    }
  }

  // Where the row's results go. kCommon kernels have all of their registers in use during the sums,
  // and none to keep addresses in.
  const auto row = [&] { return kCommon ? BlockIndexAnew() : t; };
  T* const x_out = kCommon ? static_cast<T*>(args.x) + row() * d * dv : x;

  // Rewrite and read. sum: x_in^2, w_beta . (w_norm x_in), W_v x_in.
  float sum[2 + kChannels] = {};
  for_packs([&](int n, int feature) {
    if constexpr (!kHeld) load(n, feature);
    if (rewrite) {
      float rewritten[kGroup * kChannels];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const float value = ToFloat(h_pack[n].element[i]);
#pragma unroll
        for (int j = 0; j < kChannels; ++j) {
          rewritten[i * kChannels + j] =
              MultiplyAdd(value, step[j], ToFloat(x_pack[n].element[i * kChannels + j]));
        }
      }
      x_pack[n] = Round<T>(rewritten);
      StoreFeatures<kDv, kGroup>(x_out + feature * dv, x_pack[n], dv);
    }
    if (!read) return;

    // From X as stored, so that fusing the rewrite and the read changes nothing.
    Pack<float, kGroup> in;
    if constexpr (kOverTokens) {
      // Oldest first: the tail has the taps before the sequence's first row here, then come rows.
      const int taps = static_cast<int>(args.taps);
      if (source != nullptr && before < taps - 1) {
        in = LoadPack<kGroup>(source + before * d + feature);
      } else {
        in = {};
      }
      for (int back = before < taps - 1 ? before : taps - 1; back > 0; --back) {
        const T* x_then = x - static_cast<int64_t>(back) * d * dv + feature * dv;
        const auto then_pack = LoadFeatures<kDv, kGroup>(x_then, dv);
        const float* w = args.compress_weight + ((taps - 1 - back) * d + feature) * dv;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          in.element[i] = Add(in.element[i], Tap<kDv>(w + i * dv, then_pack, i, dv));
        }
      }
      const float* w = args.compress_weight + ((taps - 1) * d + feature) * dv;
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        in.element[i] = Add(in.element[i], Tap<kDv>(w + i * dv, x_pack[n], i, dv));
      }
      if (phases.tails) {  // this row is its sequence's only one: a_n <- a_{n+1} + W_{k-1-n} X
        float* target = args.tail + batch.slot[batch.row_sequence[t]] * args.tail_stride;
        const int64_t save = batch.row_save != nullptr ? batch.row_save[t] : -1;
        for (int tap = 0; tap + 1 < taps; ++tap) {
          const float* w_tap = args.compress_weight + ((taps - 2 - tap) * d + feature) * dv;
          const bool carry = source != nullptr && tap + 2 < taps;
          Pack<float, kGroup> after = {};
          if (carry) after = LoadPack<kGroup>(source + (tap + 1) * d + feature);
#pragma unroll
          for (int i = 0; i < kGroup; ++i) {
            after.element[i] = Add(after.element[i], Tap<kDv>(w_tap + i * dv, x_pack[n], i, dv));
          }
          StorePack(target + tap * d + feature, after);
          if (save >= 0) StorePack(args.tail + save * args.tail_stride + tap * d + feature, after);
        }
      }
    } else if (kCommon ? kDv == 1 : args.compress == Compress::kIdentity) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) in.element[i] = ToFloat(x_pack[n].element[i * kChannels]);
    } else {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        in.element[i] = Tap<kDv>(args.compress_weight + (feature + i) * dv, x_pack[n], i, dv);
      }
    }
    if constexpr (kHeld) {
      in_pack[n] = in;
    } else {
      StorePack(x_in + feature, in);
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sum[0] += in.element[i] * in.element[i];
    if (linear_beta) {
      const auto norm = LoadWeights<kGroup>(args.norm_weight + feature);
      const auto weight = LoadWeights<kGroup>(gate.beta_weight + feature);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        sum[1] += weight.element[i] * (norm.element[i] * in.element[i]);
      }
    }
    if (linear_v) {
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        if (j < dv) {
          const auto weight = LoadWeights<kGroup>(gate.v_weight + j * d + feature);
#pragma unroll
          for (int i = 0; i < kGroup; ++i) sum[2 + j] += weight.element[i] * in.element[i];
        }
      }
    }
  });
  if (!read) return;

  BlockSum<kThreads>(sum, scratch);
  const float scale = InverseSqrt(sum[0] / static_cast<float>(d) + args.norm_eps);
  const int64_t t_out = row();
  for_packs([&](int n, int feature) {
    if constexpr (!kHeld) in_pack[n] = LoadPack<kGroup>(x_in + feature);
    const Pack<float, kGroup>& in = in_pack[n];
    const auto norm = LoadWeights<kGroup>(args.norm_weight + feature);
    Pack<float, kGroup> c;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) c.element[i] = norm.element[i] * (in.element[i] * scale);
    StorePack(static_cast<T*>(args.c) + t_out * d + feature, Round<T>(c.element));
    if (!kCommon && args.x_in != nullptr) {
      StorePack(static_cast<T*>(args.x_in) + t_out * d + feature, Round<T>(in.element));
    }
    if (hidden_beta) StorePack(x_in + feature, c);
  });
  if (!gates) return;

  float logit = sum[1] * scale;
  if (hidden_beta) {
    __syncthreads();
    logit = HiddenLogit(args, x_in, reinterpret_cast<float*>(shared + layout.hidden));
  }
  // Every thread has all sums: each takes one result.
  const int result = static_cast<int>(threadIdx.x);
  if (result == 0) args.beta[t_out] = 2.0f * Sigmoid(logit + gate.beta_bias);
  const int j = result - 1;
  if (j < 0 || j >= dv) return;
  float v = gate.v_constant;
  if (linear_v) {
    v = gate.v_bias[j];
#pragma unroll
    for (int n = 0; n < kChannels; ++n) v += n == j ? sum[2 + n] : 0.0f;
    if (gate.v_sigmoid) v = gate.v_scale * Sigmoid(v);
  }
  args.v[t_out * dv + j] = v;
}

template <typename T, int kDv, int kGroup, int kTrips, bool kOverTokens>
Error LaunchRows(Stream stream, const Batch& batch, const DeltaStepArgs& args,
                 const Phases& phases) {
  return Launch(DeltaStepRows<T, kDv, kGroup, kTrips, false, kOverTokens, AnyShape<kTrips>>,
                Grid{batch.tokens}, kThreads,
                LayoutOf(args, phases, kThreads / kWarp, kTrips > 0).end, stream, args, batch,
                phases);
}

// By a thread for eight features: d = 768, 1024 and 2048.
template <int kDv>
Error LaunchCommon(Stream stream, const Batch& batch, const DeltaStepArgs& args,
                   const Phases& phases) {
  // On a multiprocessor: bounds the registers, so that enough rows are in flight.
  constexpr int kMaxThreads = kDv == 1 ? 1280 : kDv == 2 ? 896 : kDv == 4 ? 704 : 384;
  const auto launch = [&](auto shape) {
    using Shape = decltype(shape);
    return Launch(DeltaStepRows<BFloat16, kDv, 8 / kDv, kDv, true, false, Shape>,
                  Grid{batch.tokens}, Shape::kThreads,
                  LayoutOf(args, phases, Shape::kThreads / kWarp, true).end, stream, args, batch,
                  phases);
  };
  switch (args.d) {
    case 768:
      return launch(Shape<96, kMaxThreads / 96>{});
    case 1024:
      return launch(Shape<128, kMaxThreads / 128>{});
    default:
      return launch(Shape<256, kMaxThreads / 256>{});
  }
}

template <typename T, int kDv, int kGroup, int kTrips>
Error LaunchAll(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  if (args.rewrite == Rewrite::kDelta && args.update_ratio != nullptr) {
    const Error error = LaunchUpdateRatio(stream, batch.tokens, args);
    if (error != kSuccess) return error;
  }
  Phases phases;
  phases.rewrite = args.rewrite != Rewrite::kNone;
  phases.read = true;
  if (args.compress != Compress::kToken) {
    if constexpr (sizeof(T) == 2 && kDv > 0) {
      if (IsCommon<kDv>(args, phases)) return LaunchCommon<kDv>(stream, batch, args, phases);
    }
    return LaunchRows<T, kDv, kGroup, kTrips, false>(stream, batch, args, phases);
  }
  if (batch.tokens == batch.sequences) {
    phases.tails = true;
    return LaunchRows<T, kDv, kGroup, kTrips, true>(stream, batch, args, phases);
  }
  // A row reads its predecessors' X as rewritten, and the tail before it is written anew: a kernel
  // after the other, since nothing else orders blocks.
  if (phases.rewrite) {
    phases.read = false;
    const Error error = LaunchRows<T, kDv, kGroup, kTrips, false>(stream, batch, args, phases);
    if (error != kSuccess) return error;
  }
  phases.rewrite = false;
  phases.read = true;
  const Error error = LaunchRows<T, kDv, kGroup, kTrips, true>(stream, batch, args, phases);
  if (error != kSuccess) return error;
  return LaunchTokenTails(stream, batch, args);
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
         aligned(args.gate.v_weight, d, group, 4) && aligned(args.compress_weight, d * dv, dv, 4) &&
         (args.compress != Compress::kToken ||
          (aligned(args.tail, d, group, 4) && aligned(args.tail, args.tail_stride, group, 4)));
}

// Whether a thread holds its packs: up to 1024 features, which the paper's models have.
template <typename T, int kDv, int kGroup>
Error LaunchTrips(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  constexpr int kTrips = sizeof(T) == 2 ? kDv : kDv <= 4 ? 2 * kDv : 0;
  if constexpr (kTrips > 0) {
    if (DivideUp(args.d / kGroup, kThreads) <= kTrips) {
      return LaunchAll<T, kDv, kGroup, kTrips>(stream, batch, args);
    }
  }
  return LaunchAll<T, kDv, kGroup, 0>(stream, batch, args);
}

template <typename T, int kDv>
Error LaunchDv(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  constexpr int kWhole = static_cast<int>(16 / sizeof(T)) / kDv;
  constexpr int kGroup = kWhole > 0 ? kWhole : 1;
  if (CanGroup(args, kGroup, sizeof(T))) {
    return LaunchTrips<T, kDv, kGroup>(stream, batch, args);
  }
  return LaunchAll<T, 0, 1, 0>(stream, batch, args);
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
      return LaunchAll<T, 0, 1, 0>(stream, batch, args);
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
