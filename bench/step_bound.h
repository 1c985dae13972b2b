#ifndef DDL_BENCH_STEP_BOUND_H_
#define DDL_BENCH_STEP_BOUND_H_

#include <cstdint>
#include <memory>

#include "base/thread_pool.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_runner.h"

// What no implementation of a step can beat on this machine: its matrix products alone, and the
// reading of its keys and values. This header knows nothing of LibTorch.

namespace ddl::bench {

// The matrix products of one step of a model of this geometry, on weights of their own (all
// layers', so that they come from memory as a model's do), packed as the model packs them.
class MatrixProducts {
 public:
  // `threads` must outlive this.
  MatrixProducts(const Checkpoint& checkpoint, RunnerDType dtype, ThreadPool* threads);
  ~MatrixProducts();

  // Once through all layers with `rows` positions, then the LM head with `head_rows` of them.
  void Run(int64_t rows, int64_t head_rows) const;

 private:
  struct Weights;
  std::unique_ptr<Weights> weights_;
};

// Bytes a second that all threads together read from memory, the best of several passes
// over a buffer that fits no cache.
double ReadBandwidth(ThreadPool& threads);

}  // namespace ddl::bench

#endif  // DDL_BENCH_STEP_BOUND_H_
