#include "model/batch_invariance.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "model/ddl_model.h"
#include "tests/model/tested_instruction_set.h"

namespace ddl {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

// A kernels' row that knows how many are computed with it: flips the last bit of one result.
class FaultyKernels final : public kernels::CpuKernels {
 public:
  struct Faults {
    // Rows of a product that are wrong: those of calls with so many rows, of that packed weight
    // (in the order of packing; -1: all).
    std::function<bool(int64_t rows)> matmul = [](int64_t) { return false; };
    int packed = -1;
    std::function<bool(const kernels::Batch& batch)> attention = [](const auto&) { return false; };
  };

  FaultyKernels(std::unique_ptr<const kernels::CpuKernels> kernels, Faults faults)
      : kernels_(std::move(kernels)), faults_(std::move(faults)) {}

  kernels::InstructionSet instruction_set() const override { return kernels_->instruction_set(); }
  int64_t PackedBytes(kernels::WeightType type, int64_t n, int64_t k) const override {
    return kernels_->PackedBytes(type, n, k);
  }
  void Pack(const kernels::WeightRows* parts, int64_t count,
            const kernels::PackedWeight& weight) const override {
    if (num_packed_++ == faults_.packed) faulty_ = weight.data;
    kernels_->Pack(parts, count, weight);
  }
  void MatMul(int64_t rows, const kernels::MatMulArgs& args) const override {
    kernels_->MatMul(rows, args);
    if (!faults_.matmul(rows) || (faults_.packed >= 0 && args.weight.data != faulty_)) return;
    // The last row's last output.
    const int64_t last = rows * args.weight.n - 1;
    if (args.y_type == kernels::Type::kFloat32) {
      static_cast<uint32_t*>(args.y)[last] ^= 1;
    } else {
      static_cast<uint16_t*>(args.y)[last] ^= 1;
    }
  }
  void PagedAttention(const kernels::Batch& batch,
                      const kernels::PagedAttentionArgs& args) const override {
    kernels_->PagedAttention(batch, args);
    if (faults_.attention(batch)) *static_cast<uint16_t*>(args.y) ^= 1;
  }
  void ExpandInput(const kernels::Batch& batch,
                   const kernels::ExpandInputArgs& args) const override {
    kernels_->ExpandInput(batch, args);
  }
  void DeltaStep(const kernels::Batch& batch, const kernels::DeltaStepArgs& args) const override {
    kernels_->DeltaStep(batch, args);
  }
  void AttentionInput(const kernels::Batch& batch,
                      const kernels::AttentionInputArgs& args) const override {
    kernels_->AttentionInput(batch, args);
  }
  void SwiGlu(const kernels::Batch& batch, const kernels::SwiGluArgs& args) const override {
    kernels_->SwiGlu(batch, args);
  }
  kernels::Largest FindLargest(const float* values, int64_t n) const override {
    return kernels_->FindLargest(values, n);
  }
  float SoftmaxWeights(const float* logits, int64_t n, float max, float inverse_temperature,
                       float* weights) const override {
    return kernels_->SoftmaxWeights(logits, n, max, inverse_temperature, weights);
  }

 private:
  const std::unique_ptr<const kernels::CpuKernels> kernels_;
  const Faults faults_;
  mutable int num_packed_ = 0;
  mutable const void* faulty_ = nullptr;
};

class BatchInvarianceTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string why = kernels::WhyUnsupported(TestedInstructionSet());
    if (!why.empty()) GTEST_SKIP() << why;
  }
  std::unique_ptr<const FaultyKernels> Kernels(FaultyKernels::Faults faults = {}) {
    return std::make_unique<FaultyKernels>(MakeCpuKernels(TestedInstructionSet(), &threads_),
                                           std::move(faults));
  }

  const c10::InferenceMode inference_mode_;
  ThreadPool threads_{2};
  HugePages memory_;
};

TEST_F(BatchInvarianceTest, OfOurProducts) {
  const auto sound = Kernels();
  const struct {
    at::ScalarType type;
    Quantization quantization;
  } types[] = {{at::kFloat, Quantization::kNone},
               {at::kBFloat16, Quantization::kNone},
               {at::kBFloat16, Quantization::kInt8}};
  for (const auto& type : types) {
    const at::TensorOptions options = at::TensorOptions().dtype(type.type);
    for (const auto& [out, in] : {std::pair{1, 1}, {31, 48}, {100, 33}, {300, 288}}) {
      const Linear linear(
          {at::randn({out, in}).to(options)},
          {.kernels = sound.get(), .memory = &memory_, .quantization = type.quantization});
      EXPECT_EQ(FindBatchDependence(linear, options), "") << out << " x " << in;
    }
  }
}

TEST_F(BatchInvarianceTest, NoticesAProductThatCountsItsRows) {
  const struct {
    const char* name;
    std::function<bool(int64_t rows)> is_faulty;
    const char* found;
  } rows[] = {
      {"a row alone", [](int64_t n) { return n == 1; },
       "row 0 of 67 has other bits in rows 0...0 alone, output 100"},
      {"few rows", [](int64_t n) { return n > 1 && n < 16; },
       "row 7 of 67 has other bits in rows 3...7 alone, output 100"},
      {"many rows but not more", [](int64_t n) { return n > 16 && n < 32; },
       "row 36 of 67 has other bits in rows 20...36 alone, output 100"},
      {"more than two tiles", [](int64_t n) { return n > 32; },
       "row 66 of 67 has other bits in rows 66...66 alone, output 100"},
  };
  for (const auto& row : rows) {
    const auto faulty = Kernels({.matmul = row.is_faulty});
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const Linear linear({at::randn({200, 64}).to(type)},
                          {.kernels = faulty.get(), .memory = &memory_});
      EXPECT_EQ(FindBatchDependence(linear, at::TensorOptions().dtype(type)), row.found)
          << row.name;
    }
  }
}

TEST_F(BatchInvarianceTest, NoticesAttentionThatCountsItsRows) {
  const struct {
    const char* name;
    std::function<bool(const kernels::Batch&)> is_faulty;
    const char* found;
  } rows[] = {
      {"sound", [](const kernels::Batch&) { return false; }, ""},
      {"a sequence alone", [](const kernels::Batch& b) { return b.sequences == 1; },
       "position 0 of 3 has other bits in positions 0...2 of 1 of 3 sequences"},
      {"decoding", [](const kernels::Batch& b) { return b.tokens == b.sequences; },
       "position 69 of 70 has other bits in positions 69...69 of 1 of 3 sequences"},
      {"parts of a prompt",
       [](const kernels::Batch& b) { return b.tokens > b.sequences && b.position[0] > 0; },
       "position 3 of 35 has other bits in positions 3...7 of 2 of 3 sequences"},
  };
  for (const auto& row : rows) {
    const auto device = MakeCpuDevice(Kernels({.attention = row.is_faulty}));
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      for (const AttentionShape& shape :
           {AttentionShape{4, 64, 16}, AttentionShape{1, 24, 5}, AttentionShape{3, 128, 128}}) {
        EXPECT_EQ(FindBatchDependence(*device, shape, at::TensorOptions().dtype(type)), row.found)
            << row.name << " " << shape.head_dim;
      }
    }
  }
}

TEST_F(BatchInvarianceTest, NamesTheMatrix) {
  auto opened = Checkpoint::Open("tests/data/goldens/ccec_base");
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto checkpoint = std::make_shared<const Checkpoint>(*std::move(opened));
  const struct {
    int packed;  // the LM head is packed first, then four matrices of each layer
    const char* found;
  } rows[] = {
      {0, "the LM head: row 0 of 67 .*"},    {1, "layer 0, attn.c_q, c_k, c_v: row 0 .*"},
      {2, "layer 0, attn.c_proj: row 0 .*"}, {7, "layer 1, mlp.c_fc1, c_fc2: row 0 .*"},
      {8, "layer 1, mlp.c_proj: row 0 .*"},  {1000, ""},
  };
  for (const auto& row : rows) {
    const auto device =
        MakeCpuDevice(Kernels({.matmul = [](int64_t n) { return n == 1; }, .packed = row.packed}));
    RunnerOptions options;
    options.kv_num_blocks = 1;
    const DdlModel model(checkpoint, options, device.get());
    EXPECT_THAT(model.FindBatchDependence(), MatchesRegex(row.found)) << row.packed;
  }
  const auto device = MakeCpuDevice(
      Kernels({.attention = [](const kernels::Batch& b) { return b.sequences == 1; }}));
  RunnerOptions options;
  options.kv_num_blocks = 1;
  const DdlModel model(checkpoint, options, device.get());
  EXPECT_THAT(model.FindBatchDependence(), HasSubstr("attention: position 0 of 3 "));
}

}  // namespace
}  // namespace ddl
