#ifndef DDL_TESTS_MODEL_DEVICE_CUDA_GOLDEN_ON_CUDA_H_
#define DDL_TESTS_MODEL_DEVICE_CUDA_GOLDEN_ON_CUDA_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "model/checkpoint/checkpoint.h"
#include "model/model_runner.h"

namespace ddl {

struct GoldenShape {
  int32_t block_size = 0;
  int32_t blocks = 0;     // of a sequence
  int32_t sequences = 0;  // slots, each with so many blocks
  int32_t max_step_tokens = 0;
};

// A golden checkpoint in float32 on the GPU, or on its twin where that is linked.
inline std::unique_ptr<ModelRunner> OpenGoldenOnCuda(const std::string& name,
                                                     const GoldenShape& shape) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open("tests/data/goldens/" + name);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  RunnerOptions options;
  options.device = RunnerDevice::kCuda;
  options.kv_block_size = shape.block_size;
  options.kv_num_blocks = shape.blocks * shape.sequences;
  options.max_sequences = shape.sequences;
  options.max_step_tokens = shape.max_step_tokens;
  options.max_context_length = shape.block_size * shape.blocks;
  options.num_threads = 1;
  auto runner =
      ModelRunner::Create(std::make_shared<const Checkpoint>(*std::move(checkpoint)), options);
  EXPECT_TRUE(runner.ok()) << runner.status();
  return *std::move(runner);
}

}  // namespace ddl

#endif  // DDL_TESTS_MODEL_DEVICE_CUDA_GOLDEN_ON_CUDA_H_
