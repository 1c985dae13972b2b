#ifndef DDL_TESTS_MODEL_KERNELS_CUDA_ENGINE_H_
#define DDL_TESTS_MODEL_KERNELS_CUDA_ENGINE_H_

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "model/kernels/kernels.h"
#include "tests/model/kernels/kernel_case.h"

// One way to run a kernel on the CPU's twin and on the CUDA source, from the same argument structs
// with pointers of the host.

namespace ddl::kernels {

enum class Where : uint8_t { kCpu, kCuda };

// Where a case runs. On the host CUDA's blocks and threads take turns by `schedule`.
struct Engine {
  std::string name;
  Where where = Where::kCpu;
  uint32_t schedule = 0;
};
// The CPU's twin, and the CUDA source under several schedules; none where CUDA cannot run.
std::vector<Engine> Engines();

// Each runs a kernel whose pointers are the host's, for the tensors' full extents.
void RunKernel(const Engine& engine, int64_t tokens, int64_t vocabulary,
               const ExpandInputArgs& args);
void RunKernel(const Engine& engine, const RaggedBatch& ragged, const DeltaStepArgs& args);
void RunKernel(const Engine& engine, const RaggedBatch& ragged, int64_t rope_positions,
               const AttentionInputArgs& args);
void RunKernel(const Engine& engine, const RaggedBatch& ragged, const PagedAttentionArgs& args);
void RunKernel(const Engine& engine, int64_t tokens, const SwiGluArgs& args);

// A test of kernels on every engine, in both types.
class CudaKernelTest : public testing::TestWithParam<std::tuple<Engine, Type>> {
 public:
  static auto Everything() {
    return testing::Combine(testing::ValuesIn(Engines()),
                            testing::Values(Type::kFloat32, Type::kBFloat16));
  }
  static std::string Name(const testing::TestParamInfo<ParamType>& info) {
    const auto& [engine, type] = info.param;
    return engine.name + (type == Type::kFloat32 ? "_float32" : "_bfloat16");
  }

 protected:
  const Engine& engine() const { return std::get<0>(GetParam()); }
  Type type() const { return std::get<1>(GetParam()); }

  Random random_;
};

}  // namespace ddl::kernels

#endif  // DDL_TESTS_MODEL_KERNELS_CUDA_ENGINE_H_
