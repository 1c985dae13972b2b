#ifndef DDL_MODEL_KERNELS_CPU_CPU_KERNELS_H_
#define DDL_MODEL_KERNELS_CPU_CPU_KERNELS_H_

#include <cstdint>
#include <memory>

#include "model/kernels/instruction_set.h"
#include "model/kernels/kernels.h"

// The kernels on the CPU, and what the host alone computes: matrix products and the sums of
// sampling. The sources of this folder are compiled once for each instruction set, each time into
// a namespace of that name; dispatch.cc makes one of them.

namespace ddl::kernels {

// Spreads rows over threads: parallel_for, given `threads`, calls body(context, begin, end) on
// disjoint ranges that cover [0, n), each at least `grain` long where n allows, and returns when
// all have. Null: the calling thread does it all.
struct Executor {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  void (*parallel_for)(void* threads, int64_t n, int64_t grain, Body body, void* context) = nullptr;
  void* threads = nullptr;
};

// ---- Matrix products: y = x W^T

// kInt8: W[i, j] ~ scales[i] q[i, j] with q in [-127, 127]. x is quantized to 8 bits as it comes,
// with a scale for each row, and products are summed as integers: exactly, in any order.
enum class WeightType : uint8_t { kFloat32, kBFloat16, kInt8 };

// W is packed once, in the layout that the instruction set reads: panels of kPanelWidth of its
// rows (columns of y), [panels, words, kPanelWidth] with 32-bit words of one float32, two bfloat16
// or four int8 neighbours in a row of W, zeros where W has none.
constexpr int64_t kPanelWidth = 32;
constexpr int64_t NumPanels(int64_t n) { return (n + kPanelWidth - 1) / kPanelWidth; }
// n rounded up to whole panels.
constexpr int64_t PaddedColumns(int64_t n) { return NumPanels(n) * kPanelWidth; }

struct PackedWeight {
  WeightType type = WeightType::kBFloat16;
  int64_t n = 0;
  int64_t k = 0;
  void* data = nullptr;     // [CpuKernels::PackedBytes] aligned to 64 bytes
  float* scales = nullptr;  // kInt8 [PaddedColumns(n)]
  int32_t* sums = nullptr;  // kInt8 [PaddedColumns(n)] the sum of a row's q
};

// Some rows of W as they are stored: float32 for kFloat32, otherwise bfloat16.
struct WeightRows {
  const void* data = nullptr;  // [rows, k]
  int64_t rows = 0;
};

struct MatMulArgs {
  PackedWeight weight;
  const void* x = nullptr;  // [rows, k] float32 for kFloat32, otherwise bfloat16
  Type y_type = Type::kBFloat16;
  void* y = nullptr;  // out [rows, n], of y_type; sums are float32 and rounded once, if at all
};

// The largest of n values. `value` is undefined with a NaN among them; infinities are compared as
// numbers.
struct Largest {
  float value = 0.0f;
  bool all_finite = true;  // no NaN, no infinity
};

// Any thread may call. A row of a result has one order of sums: its bits depend on that row's
// inputs only, not on the rows beside it, their number, the threads or the processor.
class CpuKernels : public Kernels {
 public:
  ~CpuKernels() override;

  virtual InstructionSet instruction_set() const = 0;

  // Size of PackedWeight::data.
  virtual int64_t PackedBytes(WeightType type, int64_t n, int64_t k) const = 0;
  // Fills weight.data, and scales and sums of kInt8, from `count` parts of W, one below the other:
  // weight.n rows in all.
  virtual void Pack(const WeightRows* parts, int64_t count, const PackedWeight& weight) const = 0;
  virtual void MatMul(int64_t rows, const MatMulArgs& args) const = 0;

  // ---- Sampling, on the calling thread

  virtual Largest FindLargest(const float* values, int64_t n) const = 0;
  // weights[i] = exp((logits[i] - max) * inverse_temperature) for i in [0, n), all finite; returns
  // their sum. `max` is the largest logit.
  virtual float SoftmaxWeights(const float* logits, int64_t n, float max, float inverse_temperature,
                               float* weights) const = 0;
};

// `set` must be supported. `executor` is kept.
std::unique_ptr<const CpuKernels> MakeCpuKernels(InstructionSet set, const Executor& executor);

}  // namespace ddl::kernels

#endif  // DDL_MODEL_KERNELS_CPU_CPU_KERNELS_H_
