#ifndef DDL_MODEL_RUNNER_OPTIONS_H_
#define DDL_MODEL_RUNNER_OPTIONS_H_

#include <cstdint>
#include <optional>

#include "model/kernels/instruction_set.h"

namespace ddl {

enum class RunnerDType { kFloat32, kBFloat16 };

// Of the weights that matrix products read. kInt8: a scale for each output channel, activations
// quantized per row at run time; on the CPU and in bfloat16 only.
enum class Quantization { kNone, kInt8 };
enum class RunnerDevice { kCpu, kCuda };

struct RunnerOptions {
  RunnerDevice device = RunnerDevice::kCpu;
  RunnerDType dtype = RunnerDType::kFloat32;
  Quantization quantization = Quantization::kNone;
  // Of the CPU's kernels; none: the best that is supported.
  std::optional<kernels::InstructionSet> instruction_set;
  int32_t kv_block_size = 16;  // tokens
  // > 0; on a GPU 0 means as many as fit beside the weights and the largest step, up to
  // gpu_memory_fraction of its memory.
  int32_t kv_num_blocks = 0;
  double gpu_memory_fraction = 0.9;
  int32_t max_sequences = 64;  // slots for tails
  int32_t max_step_tokens = 2048;
  int32_t max_context_length = 0;  // longest sequence, tokens; 0: config.json's block_size
  // 0: one for every 16 M parameters, at most as many as ProcessLimits::Processors.
  int num_threads = 0;
  // On a GPU: a position's bits do not depend on what else is in its step, as they never do on the
  // CPU. Matrix products come in slices, attention of prompts row by row: it takes longer.
  bool batch_invariant = false;
  // On a GPU: capture the graphs of decodes of short contexts while loading, so that no step waits
  // for one.
  bool capture_graphs = false;
  // Obey ddl_state_dv_shortconv_causal in checkpoints of 2b55f25, as its accelerated model does.
  // Its eager model ignores the key, and so does the server by default. The other revisions' code
  // obeys it, and so does the server.
  bool obey_dv_shortconv_causal = false;
};

}  // namespace ddl

#endif  // DDL_MODEL_RUNNER_OPTIONS_H_
