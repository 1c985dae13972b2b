#ifndef DDL_TESTS_MODEL_KERNELS_KERNEL_CASE_H_
#define DDL_TESTS_MODEL_KERNELS_KERNEL_CASE_H_

#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/kernels/kernels.h"

// What the tests of the CPU's kernels and of the CUDA ones share: data, and the cases that both
// must get right.

namespace ddl::kernels {

float Round(float value, Type type);  // to what the type can hold

// A tensor of the type under test: values are kept as floats that the type can hold.
class Buffer {
 public:
  Buffer(Type type, size_t size);  // full of NaNs: what nothing writes shows
  Buffer(Type type, const std::vector<float>& values);
  void* data() { return bytes_.data(); }
  std::vector<float> Floats() const;

 private:
  Type type_;
  std::vector<unsigned char> bytes_;
};

class Random {
 public:
  // Of standard deviation `scale`, as the type can hold them.
  std::vector<float> Values(size_t count, float scale, Type type = Type::kFloat32);

 private:
  std::mt19937 engine_{20260111};
};

// Ragged: sequences of different lengths, some resumed in the middle, scattered blocks and slots.
struct RaggedBatch {
  // One {first position, rows} for each sequence. `room` is how many positions the block table of
  // each sequence has blocks for; 0: as many as are used.
  RaggedBatch(const std::vector<std::pair<int, int>>& start_and_length, int64_t block_size,
              int64_t room = 0);
  RaggedBatch(const RaggedBatch&) = delete;
  RaggedBatch& operator=(const RaggedBatch&) = delete;
  // From here on each sequence goes on from a slot that is not its own, and two rows of three leave
  // their tails in slots of their own as well.
  void SaveTailsByRow();
  int64_t slots() const { return 2 * batch.sequences + 1 + static_cast<int64_t>(row_save.size()); }
  int64_t blocks() const { return batch.block_table_stride * batch.sequences; }

  std::vector<int32_t> row_begin{0}, row_sequence, position, slot, block_table;
  std::vector<int32_t> tail_source, row_save;  // empty unless SaveTailsByRow
  Batch batch;
};

double Sigmoid(double x);

// One boundary.
enum class Gates : uint8_t { kNone, kLinear, kHidden, kConstant, kNoSigmoid };
struct DeltaStepCase {
  std::string name;
  int64_t d, dv;
  Rewrite rewrite;
  Compress compress;
  int64_t taps;
  Gates gates;
};
// Each kind of boundary; what straddles a kernel's own edges is up to its test.
std::vector<DeltaStepCase> DeltaStepCases();

// An attention sublayer with its options.
struct AttentionCase {
  std::string name;
  int64_t heads, head_dim, rotary_dims, block_size;
  bool norms, gate, k_shift, v_shift;
  Activation activation;
};
std::vector<AttentionCase> AttentionCases();

// Tolerances: one rounding in bfloat16 is 2^-9 relative; float32 sums of a few hundred terms stay
// at 1e-5.
void ExpectClose(const std::vector<float>& found, const std::vector<double>& want, Type type,
                 const std::string& what);

}  // namespace ddl::kernels

#endif  // DDL_TESTS_MODEL_KERNELS_KERNEL_CASE_H_
