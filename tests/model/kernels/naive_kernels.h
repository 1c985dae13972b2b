#ifndef DDL_TESTS_MODEL_KERNELS_NAIVE_KERNELS_H_
#define DDL_TESTS_MODEL_KERNELS_NAIVE_KERNELS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "model/kernels/kernels.h"
#include "tests/model/kernels/kernel_case.h"

// What a boundary and an attention sublayer are to give: loops in double precision that follow
// ddl-spec line by line. They take the arguments of the kernel's call for its shapes, options and
// float32 weights; what the kernel overwrites, and what may be bfloat16, comes as floats.

namespace ddl::kernels {

// What a call of DeltaStep finds.
struct DeltaStepInput {
  std::vector<float> x;        // [tokens, d, dv]
  std::vector<float> h;        // [tokens, d]
  std::vector<float> v, beta;  // [tokens, dv], [tokens]
  std::vector<float> tail;     // [slots, taps, d], of which the last tap is nobody's
};

struct RewrittenState {
  std::vector<double> x;
  std::vector<double> update_ratio;  // [tokens]; -1 but for the delta rule
};
RewrittenState NaiveRewrite(const DeltaStepArgs& args, const DeltaStepInput& before);

struct StateRead {
  std::vector<double> x_in, c;  // [tokens, d]
  std::vector<double> v, beta;  // as if there were gates
  std::vector<double> tail;
};
// Of X as the kernel has stored it: that rounding is not the read's error.
StateRead NaiveRead(const RaggedBatch& ragged, const DeltaStepArgs& args,
                    const DeltaStepInput& before, const std::vector<float>& stored);

// Attention with all keys and values of its sequences at hand, from their first positions on.
class NaiveAttention {
 public:
  struct Result {
    std::vector<double> q, k, v;  // [tokens, H, hd] as they go into attention, but not rounded
    std::vector<double> y;        // [tokens, H, hd], of q, k and v as the type can hold them
  };

  explicit NaiveAttention(int64_t sequences);

  // The sequences' next rows: `qkv` [tokens, 3, H, hd], `c` [tokens, d], `gate` [tokens, H, hd].
  Result Next(const RaggedBatch& ragged, const AttentionInputArgs& input,
              const PagedAttentionArgs& attention, const std::vector<float>& qkv,
              const std::vector<float>& c, const std::vector<float>& gate);

 private:
  struct Sequence {
    std::vector<std::vector<double>> keys, values;  // [positions * H][hd]
    std::vector<float> last_k, last_v;              // [H * hd]; empty before the first position
  };
  std::vector<Sequence> sequences_;
};

// K, V and q are rounded before attention: a last-bit tie there moves y by a little more than
// ExpectClose allows.
void ExpectCloseAttention(const std::vector<float>& found, const std::vector<double>& want,
                          Type type, const std::string& what);

}  // namespace ddl::kernels

#endif  // DDL_TESTS_MODEL_KERNELS_NAIVE_KERNELS_H_
