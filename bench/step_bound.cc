#include "bench/step_bound.h"

#include <ATen/ops/full.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "model/device/device.h"
#include "model/linear.h"

namespace ddl::bench {
namespace {

struct Layer {
  Linear qkv, output, mlp_in, mlp_out;
};

Linear Matrix(const LinearOptions& options, int64_t rows, int64_t columns, at::ScalarType type) {
  // What the numbers are does not matter to the time, as long as they are normal.
  return Linear({at::full({rows, columns}, 0.01, at::TensorOptions().dtype(type))}, options);
}

at::Tensor Input(int64_t rows, int64_t columns, at::ScalarType type) {
  return at::full({rows, columns}, 0.5, at::TensorOptions().dtype(type));
}

}  // namespace

struct MatrixProducts::Weights {
  std::unique_ptr<const kernels::CpuKernels> kernels;
  at::ScalarType type = at::kFloat;
  int64_t d = 0, inner = 0, m = 0;
  std::vector<Layer> layers;
  Linear head;
};

MatrixProducts::MatrixProducts(const Checkpoint& checkpoint, RunnerDType dtype, ThreadPool* threads)
    : weights_(std::make_unique<Weights>()) {
  const c10::InferenceMode inference_mode;
  const ModelConfig& config = checkpoint.config();
  Weights& w = *weights_;
  w.kernels = MakeCpuKernels(kernels::BestInstructionSet(), threads);
  HugePages memory;
  const LinearOptions options = {.kernels = w.kernels.get(), .memory = &memory};
  w.type = dtype == RunnerDType::kBFloat16 ? at::kBFloat16 : at::kFloat;
  w.d = config.hidden_size;
  w.inner = config.num_attention_heads * config.head_dim;
  w.m = MlpWidth(config, checkpoint.variant());
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    w.layers.push_back({Matrix(options, 3 * w.inner, w.d, w.type),
                        Matrix(options, w.d, w.inner, w.type),
                        Matrix(options, 2 * w.m, w.d, w.type), Matrix(options, w.d, w.m, w.type)});
  }
  w.head = Matrix(options, config.vocab_size, w.d, w.type);
}

MatrixProducts::~MatrixProducts() = default;

void MatrixProducts::Run(int64_t rows, int64_t head_rows) const {
  const c10::InferenceMode inference_mode;
  const Weights& w = *weights_;
  const at::Tensor x = Input(rows, w.d, w.type);
  const at::Tensor y = Input(rows, w.inner, w.type);
  const at::Tensor z = Input(rows, w.m, w.type);
  for (const Layer& layer : w.layers) {
    layer.qkv(x);
    // Of the last layer's rows only those are needed that the head reads.
    const int64_t read = &layer == &w.layers.back() ? head_rows : rows;
    layer.output(y.narrow(0, 0, read));
    layer.mlp_in(x.narrow(0, 0, read));
    layer.mlp_out(z.narrow(0, 0, read));
  }
  w.head(x.narrow(0, 0, head_rows));
}

double ReadBandwidth(ThreadPool& threads) {
  constexpr int64_t kWords = int64_t{1} << 25;  // 256 MiB
  constexpr int kPasses = 4;
  const std::vector<uint64_t> buffer(kWords, 1);
  std::atomic<uint64_t> total = 0;  // keeps the reads from being optimised away
  double best = 0.0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    threads.ParallelFor(kWords, kWords / 64, [&](int64_t begin, int64_t end) {
      uint64_t sum = 0;
      for (int64_t i = begin; i < end; ++i) sum += buffer[i];
      total += sum;
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(kWords * sizeof(uint64_t)) / seconds.count());
  }
  return best;
}

}  // namespace ddl::bench
