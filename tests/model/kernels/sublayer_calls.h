#ifndef DDL_TESTS_MODEL_KERNELS_SUBLAYER_CALLS_H_
#define DDL_TESTS_MODEL_KERNELS_SUBLAYER_CALLS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "model/kernels/kernels.h"
#include "tests/model/kernels/kernel_case.h"
#include "tests/model/kernels/naive_kernels.h"

// Calls of the kernels on random data, with all that their arguments point to: the same for the
// CPU's kernels and the CUDA ones. A test changes `args` where it wants something else.

namespace ddl::kernels {

// DeltaStep with every output. The caller gives args.x, which is to hold before.x.
struct DeltaStepCall {
  // X of row `empty_row` is 0. Scales are standard deviations, of h and of the weights that are
  // summed over d.
  DeltaStepCall(Random& random, const RaggedBatch& ragged, const DeltaStepCase& boundary, Type type,
                int64_t empty_row, float h_scale, float weight_scale);
  DeltaStepCall(const DeltaStepCall&) = delete;
  DeltaStepCall& operator=(const DeltaStepCall&) = delete;

  // What the call has left, `x` being X: as the naive loops have it.
  void ExpectEqualsNaive(const RaggedBatch& ragged, const std::vector<float>& x,
                         const std::string& what) const;

  DeltaStepInput before;
  std::vector<float> v, beta, tail, update_ratio;
  Buffer x_in, c;
  DeltaStepArgs args;

 private:
  Buffer h_;
  std::vector<float> compress_, norm_, w_beta_, w_in_, w_v_, b_v_;
};

// The weights and caches of an attention sublayer.
struct AttentionLayer {
  // `ragged` has blocks and slots for all calls; rows are at positions below `positions`.
  AttentionLayer(Random& random, const AttentionCase& options, Type type, int64_t d,
                 const RaggedBatch& ragged, int64_t positions, float shift_scale);

  const AttentionCase options;
  const Type type;
  const int64_t d;
  std::vector<float> q_norm, k_norm, y_norm, k_alpha, v_alpha, rope_cos, rope_sin;
  Buffer k_cache, v_cache;
  std::vector<float> tails;
};

// AttentionInput, then PagedAttention, of `tokens` rows. The layer must outlive it.
struct AttentionCall {
  AttentionCall(Random& random, AttentionLayer& layer, int64_t tokens);
  AttentionCall(const AttentionCall&) = delete;
  AttentionCall& operator=(const AttentionCall&) = delete;

  const std::vector<float> qkv_before, c, gate;
  Buffer qkv, y;
  AttentionInputArgs input;
  PagedAttentionArgs attention;

 private:
  Buffer c_, gate_;
};

}  // namespace ddl::kernels

#endif  // DDL_TESTS_MODEL_KERNELS_SUBLAYER_CALLS_H_
