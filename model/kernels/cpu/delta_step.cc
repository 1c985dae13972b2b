// One sublayer boundary. The delta rule's arithmetic is nothing beside a matrix product's, so what
// counts is that a row of X is read once for the projection and once for all the rest: the update,
// its rounding, the compress, and the products for the gates.
//
// A vector holds sixteen neighbours of X, [d, dv] with dv fastest: 16 / dv features. So a block of
// sixteen features is dv vectors of X, and one of h or x_in. Where d is no multiple of sixteen, or
// dv none of 1, 2, 4 and 8, rows and weights are padded with zeros, which change no sum.

#include "model/kernels/cpu/delta_row.h"
#include "model/kernels/cpu/implementation.h"
#include "model/kernels/cpu/vector.h"

namespace ddl::kernels::DDL_KERNELS_NAMESPACE {
namespace {

int64_t Padded(int64_t d) { return (d + kLanes - 1) / kLanes * kLanes; }

template <typename T, int kDv>
class Stepper {
 public:
  Stepper(const Batch& batch, const DeltaStepArgs& args)
      : batch_(batch),
        args_(args),
        d_(Padded(args.d)),
        tail_size_(args.compress == Compress::kToken ? (args.taps - 1) * d_ : 0),
        is_padded_(d_ != args.d || kDv != args.dv),
        padded_weights_(is_padded_ ? PaddedWeightBytes() : 0) {
    weights_.d = d_;
    weights_.taps = args.taps;
    weights_.compress = args.compress_weight;
    weights_.norm = args.norm_weight;
    if (args.gates && args.gate.beta_in == nullptr) weights_.beta = args.gate.beta_weight;
    if (args.gates) weights_.v = args.gate.v_weight;
    if (is_padded_) PadWeights();
  }

  void Run(const Executor& executor) {
    switch (args_.compress) {
      case Compress::kIdentity:
        if constexpr (kDv == 1) RunRead<Read::kIdentity>(executor);
        return;
      case Compress::kChannel:
        return RunRead<Read::kChannel>(executor);
      case Compress::kToken:
        return RunRead<Read::kToken>(executor);
    }
  }

 private:
  // A thread's memory.
  struct Workspace {
    explicit Workspace(const Stepper& stepper)
        : scratch(Scratch::Bytes<float>(stepper.d_) +
                  2 * Scratch::Bytes<float>(stepper.tail_size_) +
                  Scratch::Bytes<T>(stepper.d_ * (kDv + 1))),
          x_in(scratch.Take<float>(stepper.d_)),
          tail(scratch.Take<float>(stepper.tail_size_)),
          zeros(scratch.Take<float>(stepper.tail_size_)),
          x(scratch.Take<T>(stepper.d_ * (kDv + 1))),
          h(x + stepper.d_ * kDv) {
      memset(zeros, 0, stepper.tail_size_ * sizeof(float));
    }

    Scratch scratch;
    float* x_in;   // [d]
    float* tail;   // [taps - 1, d]
    float* zeros;  // [taps - 1, d]
    T* x;          // padded [d, kDv]
    T* h;          // padded [d]
  };

  int64_t PaddedWeightBytes() const {
    const int64_t taps = args_.compress == Compress::kToken ? args_.taps : 1;
    return Scratch::Bytes<float>(taps * d_ * kDv) + 2 * Scratch::Bytes<float>(d_) +
           Scratch::Bytes<float>(kDv * d_);
  }

  // [rows, columns] of `weight`, as [rows_padded, columns_padded] with zeros.
  const float* Pad(const float* weight, int64_t rows, int64_t columns, int64_t rows_padded,
                   int64_t columns_padded) {
    if (weight == nullptr) return nullptr;
    float* padded = padded_weights_.template Take<float>(rows_padded * columns_padded);
    memset(padded, 0, rows_padded * columns_padded * sizeof(float));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        padded[i * columns_padded + j] = weight[i * columns + j];
      }
    }
    return padded;
  }

  void PadWeights() {
    const int64_t d = args_.d;
    if (args_.compress != Compress::kIdentity) {
      const int64_t taps = args_.compress == Compress::kToken ? args_.taps : 1;
      float* padded = padded_weights_.template Take<float>(taps * d_ * kDv);
      memset(padded, 0, taps * d_ * kDv * sizeof(float));
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t i = 0; i < d; ++i) {
          for (int64_t j = 0; j < args_.dv; ++j) {
            padded[(tap * d_ + i) * kDv + j] = args_.compress_weight[(tap * d + i) * args_.dv + j];
          }
        }
      }
      weights_.compress = padded;
    }
    weights_.norm = Pad(weights_.norm, 1, d, 1, d_);
    weights_.beta = Pad(weights_.beta, 1, d, 1, d_);
    weights_.v = Pad(weights_.v, args_.dv, d, kDv, d_);
  }

  T* XRow(int64_t t) const { return static_cast<T*>(args_.x) + t * args_.d * args_.dv; }

  // A row's X and h where StepRow finds them.
  RowMemory<T> Bring(Workspace& work, int64_t t) const {
    RowMemory<T> memory;
    memory.x_in = work.x_in;
    memory.x = XRow(t);
    if (args_.h != nullptr) memory.h = static_cast<const T*>(args_.h) + t * args_.d;
    if (!is_padded_) return memory;
    memset(work.x, 0, d_ * (kDv + 1) * sizeof(T));
    for (int64_t i = 0; i < args_.d; ++i) {
      for (int64_t j = 0; j < args_.dv; ++j) work.x[i * kDv + j] = memory.x[i * args_.dv + j];
      if (memory.h != nullptr) work.h[i] = memory.h[i];
    }
    memory.x = work.x;
    memory.h = work.h;
    return memory;
  }

  void PutBack(const Workspace& work, int64_t t) const {
    T* x = XRow(t);
    for (int64_t i = 0; i < args_.d; ++i) {
      for (int64_t j = 0; j < args_.dv; ++j) x[i * args_.dv + j] = work.x[i * kDv + j];
    }
  }

  template <Rewrite kRewrite, Read kRead>
  void Row(Workspace& work, int64_t t, const float* tail_in, float* tail_out) const {
    RowMemory<T> memory = Bring(work, t);
    memory.tail_in = tail_in;
    memory.tail_out = tail_out;
    RowSums sums;
    StepRow<T, kDv, kRewrite, kRead>(args_, weights_, t, memory, sums);
    if (is_padded_ && kRewrite != Rewrite::kNone) PutBack(work, t);
    if constexpr (kRead != Read::kNothing) Finish(work, t, sums);
  }

  // c = RMSNorm(x_in), and the gates.
  void Finish(Workspace& work, int64_t t, const RowSums& sums) const {
    const int64_t d = args_.d;
    const float* x_in = work.x_in;
    const float scale = 1.0f / sqrtf(sums.squares / static_cast<float>(d) + args_.norm_eps);
    if (args_.x_in != nullptr) {
      T* x_in_out = static_cast<T*>(args_.x_in) + t * d;
      for (int64_t i = 0; i < d; ++i) Store(x_in_out + i, x_in[i]);
    }
    T* c = static_cast<T*>(args_.c) + t * d;
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) {
      StoreVector(c + i, LoadVector(weights_.norm + i) * (LoadVector(x_in + i) * scale));
    }
    for (; i < d; ++i) Store(c + i, weights_.norm[i] * (x_in[i] * scale));
    if (!args_.gates) return;

    const GateWeights& gate = args_.gate;
    float logit = gate.beta_bias + scale * sums.beta;
    if (gate.beta_in != nullptr) {
      for (i = 0; i < d; ++i) work.x_in[i] = weights_.norm[i] * (x_in[i] * scale);
      for (int64_t n = 0; n < gate.beta_hidden; ++n) {
        logit += gate.beta_weight[n] * tanhf(Dot(gate.beta_in + n * d, work.x_in, d));
      }
    }
    args_.beta[t] = 2.0f * Sigmoid(logit);
    float* v = args_.v + t * args_.dv;
    for (int64_t j = 0; j < args_.dv; ++j) {
      if (gate.v_weight == nullptr) {
        v[j] = gate.v_constant;
        continue;
      }
      const float value = sums.v[j] + gate.v_bias[j];
      v[j] = gate.v_sigmoid ? gate.v_scale * Sigmoid(value) : value;
    }
  }

  template <Read kRead>
  void RunRead(const Executor& executor) {
    switch (args_.rewrite) {
      case Rewrite::kNone:
        return RunRows<Rewrite::kNone, kRead>(executor);
      case Rewrite::kDelta:
        return RunRows<Rewrite::kDelta, kRead>(executor);
      case Rewrite::kAdd:
        if constexpr (kDv == 1) RunRows<Rewrite::kAdd, kRead>(executor);
        return;
    }
  }

  template <Rewrite kRewrite, Read kRead>
  void RunRows(const Executor& executor) {
    if constexpr (kRead == Read::kToken) {
      if (batch_.tokens != batch_.sequences) return RunSequences<kRewrite>(executor);
    }
    ParallelFor(executor, batch_.tokens, Grain(), [&](int64_t begin, int64_t end) {
      Workspace work(*this);
      for (int64_t t = begin; t < end; ++t) {
        if constexpr (kRead == Read::kToken) {
          float* tail = is_padded_ ? work.tail : Tail(batch_.slot[t]);
          Row<kRewrite, kRead>(work, t, SourceTail(work, t), tail);
          if (is_padded_) SaveTail(tail, batch_.slot[t]);
          SaveTailOfRow(tail, t);
        } else {
          Row<kRewrite, kRead>(work, t, nullptr, nullptr);
        }
      }
    });
  }

  // ---- TC with more than one row of a sequence: an output needs the rows before, rewritten.

  template <Rewrite kRewrite>
  void RunSequences(const Executor& executor) {
    if constexpr (kRewrite != Rewrite::kNone) {
      ParallelFor(executor, batch_.tokens, Grain(), [&](int64_t begin, int64_t end) {
        Workspace work(*this);
        for (int64_t t = begin; t < end; ++t) {
          Row<kRewrite, Read::kNothing>(work, t, nullptr, nullptr);
        }
      });
    }
    // A sequence's rows may be several threads', and any of them may read the tails it came with:
    // those that it leaves go to its slot when all have.
    Scratch scratch(Scratch::Bytes<float>(batch_.sequences * tail_size_));
    float* left = scratch.Take<float>(batch_.sequences * tail_size_);
    ParallelFor(executor, batch_.tokens, Grain(), [&](int64_t begin, int64_t end) {
      Workspace work(*this);
      const float* tail = nullptr;
      for (int64_t t = begin; t < end; ++t) {
        const int64_t sequence = batch_.row_sequence[t];
        const int64_t first = batch_.row_begin[sequence];
        if (t == begin || t == first) tail = TailBefore(work, t);
        Row<Rewrite::kNone, Read::kToken>(work, t, tail, work.tail);
        tail = work.tail;
        SaveTailOfRow(tail, t);
        if (t + 1 == batch_.row_begin[sequence + 1]) {
          memcpy(left + sequence * tail_size_, tail, tail_size_ * sizeof(float));
        }
      }
    });
    for (int64_t s = 0; s < batch_.sequences; ++s) {
      SaveTail(left + s * tail_size_, batch_.slot[s]);
    }
  }

  // The partial sums before row t: what its sequence came with, or those of the rows before, which
  // begin at zero taps - 1 rows before.
  const float* TailBefore(Workspace& work, int64_t t) const {
    const int64_t sequence = batch_.row_sequence[t];
    const int64_t first = batch_.row_begin[sequence];
    const int64_t from = t - (args_.taps - 1) > first ? t - (args_.taps - 1) : first;
    const float* tail = from == first ? SourceTail(work, sequence) : work.zeros;
    for (int64_t row = from; row < t; ++row) {
      RowMemory<T> memory = Bring(work, row);
      memory.tail_in = tail;
      memory.tail_out = work.tail;
      RowSums unused;
      StepRow<T, kDv, Rewrite::kNone, Read::kToken>(args_, weights_, row, memory, unused);
      tail = work.tail;
    }
    return tail;
  }

  float* Tail(int64_t slot) const { return args_.tail + slot * args_.tail_stride; }

  // The partial sums that a sequence came with, [taps - 1, padded d].
  const float* SourceTail(Workspace& work, int64_t sequence) const {
    if (batch_.position[batch_.row_begin[sequence]] == 0) return work.zeros;
    const float* tail = Tail(TailSource(batch_, sequence));
    if (!is_padded_) return tail;
    memset(work.tail, 0, tail_size_ * sizeof(float));
    for (int64_t n = 0; n + 1 < args_.taps; ++n) {
      memcpy(work.tail + n * d_, tail + n * args_.d, args_.d * sizeof(float));
    }
    return work.tail;
  }

  void SaveTail(const float* tail, int64_t slot) const {
    for (int64_t n = 0; n + 1 < args_.taps; ++n) {
      memcpy(Tail(slot) + n * args_.d, tail + n * d_, args_.d * sizeof(float));
    }
  }

  void SaveTailOfRow(const float* tail, int64_t t) const {
    if (batch_.row_save != nullptr && batch_.row_save[t] >= 0) SaveTail(tail, batch_.row_save[t]);
  }

  // Rows that are worth a thread: a few microseconds.
  int64_t Grain() const {
    constexpr int64_t kElements = 12288;
    const int64_t rows = kElements / (d_ * kDv);
    return rows > 1 ? rows : 1;
  }

  const Batch& batch_;
  const DeltaStepArgs& args_;
  const int64_t d_;  // padded
  const int64_t tail_size_;
  const bool is_padded_;
  Scratch padded_weights_;
  StepWeights weights_;
};

template <typename T>
void DeltaStepTyped(const Executor& executor, const Batch& batch, const DeltaStepArgs& args) {
  switch (args.dv) {
    case 1:
      return Stepper<T, 1>(batch, args).Run(executor);
    case 2:
      return Stepper<T, 2>(batch, args).Run(executor);
    case 3:
    case 4:
      return Stepper<T, 4>(batch, args).Run(executor);
    default:
      return Stepper<T, 8>(batch, args).Run(executor);
  }
}

}  // namespace

void Implementation::DeltaStep(const Batch& batch, const DeltaStepArgs& args) const {
  if (args.update_ratio != nullptr && args.rewrite == Rewrite::kDelta) {
    UpdateRatios(batch, args);
  }
  if (args.dv > 8 ||
      (args.dv > 1 && (args.rewrite == Rewrite::kAdd || args.compress == Compress::kIdentity))) {
    return WideDeltaStep(batch, args);
  }
  args.type == Type::kFloat32 ? DeltaStepTyped<float>(executor_, batch, args)
                              : DeltaStepTyped<BFloat16>(executor_, batch, args);
}

}  // namespace ddl::kernels::DDL_KERNELS_NAMESPACE
