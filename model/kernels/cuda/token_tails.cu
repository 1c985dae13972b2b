// TC's tails: what the rows of a step leave for the inputs of the rows after them, once DeltaStep
// has rewritten X. Where every sequence has one row DeltaStep leaves them itself.

#include "model/kernels/cuda/delta_step.cuh"

namespace ddl::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// The tail that a sequence goes on from; null at its start.
__device__ inline const float* SourceTail(const DeltaStepArgs& args, const Batch& batch,
                                          int64_t sequence) {
  return batch.position[batch.row_begin[sequence]] > 0
             ? args.tail + TailSource(batch, sequence) * args.tail_stride
             : nullptr;
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

// A thread owns whole features. blockIdx.x is a row that leaves its tail in a slot of its own.
template <typename T, int kDv>
__global__ void __launch_bounds__(kThreads, 4) SavedTails(DeltaStepArgs args, Batch batch) {
  BeginKernel();
  const int64_t t = blockIdx.x;
  const int64_t save = batch.row_save[t];
  if (save < 0) return;
  const int64_t sequence = batch.row_sequence[t], first = batch.row_begin[sequence];
  const float* source = SourceTail(args, batch, sequence);
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i >= args.d) return;
  LeaveTail<T, kDv>(args, first, t + 1, i, source, args.tail + save * args.tail_stride);
}

// blockIdx.x is a sequence. Where it goes on from the tail that it leaves, rows that are saved read
// that too: this comes after SavedTails.
template <typename T, int kDv>
__global__ void __launch_bounds__(kThreads, 4) TokenTails(DeltaStepArgs args, Batch batch) {
  BeginKernel();
  const int64_t sequence = blockIdx.x;
  const int64_t first = batch.row_begin[sequence], end = batch.row_begin[sequence + 1];
  const float* source = SourceTail(args, batch, sequence);
  const int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (i >= args.d) return;
  LeaveTail<T, kDv>(args, first, end, i, source,
                    args.tail + batch.slot[sequence] * args.tail_stride);
}

template <typename T, int kDv>
Error LaunchDv(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  const int64_t parts = DivideUp(args.d, kThreads);
  if (batch.row_save != nullptr) {
    const Error saved =
        Launch(SavedTails<T, kDv>, Grid{batch.tokens, parts}, kThreads, 0, stream, args, batch);
    if (saved != kSuccess) return saved;
  }
  return Launch(TokenTails<T, kDv>, Grid{batch.sequences, parts}, kThreads, 0, stream, args, batch);
}

template <typename T>
Error LaunchType(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  // Whether the channels of a feature can be loaded as packs.
  const auto aligned = [&](const void* p, int64_t element_bytes) {
    const int64_t bytes = args.dv * element_bytes;
    return IsAligned(p, bytes, bytes < 16 ? bytes : 16);
  };
  const bool packs = aligned(args.x, sizeof(T)) && aligned(args.compress_weight, sizeof(float));
  switch (packs ? args.dv : 0) {
    case 1:
      return LaunchDv<T, 1>(stream, batch, args);
    case 2:
      return LaunchDv<T, 2>(stream, batch, args);
    case 4:
      return LaunchDv<T, 4>(stream, batch, args);
    case 8:
      return LaunchDv<T, 8>(stream, batch, args);
    default:
      return LaunchDv<T, 0>(stream, batch, args);
  }
}

}  // namespace

Error LaunchTokenTails(Stream stream, const Batch& batch, const DeltaStepArgs& args) {
  return args.type == Type::kFloat32 ? LaunchType<float>(stream, batch, args)
                                     : LaunchType<BFloat16>(stream, batch, args);
}

}  // namespace ddl::kernels::cuda
