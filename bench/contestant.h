#ifndef DDL_BENCH_CONTESTANT_H_
#define DDL_BENCH_CONTESTANT_H_

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_runner.h"

namespace ddl::bench {

constexpr int32_t kMaxStepTokens = 512;

// One thing that is timed.
struct Scenario {
  bool is_prefill = false;
  int32_t batch = 1;   // sequences
  int32_t tokens = 0;  // decode: context at the first step; prefill: the prompt's length

  std::string Name() const {
    return is_prefill ? absl::StrCat("prefill ", tokens)
                      : absl::StrCat("decode batch ", batch, ", context ", tokens);
  }
  // Positions of one step.
  int64_t Rows() const { return is_prefill ? tokens : batch; }
};

struct ContestantOptions {
  std::vector<Scenario> scenarios;  // those that will be timed
  int32_t max_batch = 1;            // of them, sequences
  int32_t steps = 1;                // decode steps of a round
  int32_t threads = 1;
  RunnerDevice device = RunnerDevice::kCpu;
  std::optional<RunnerDType> dtype;  // none: bfloat16 for checkpoints stored in it, else float32
  Quantization quantization = Quantization::kNone;
  std::optional<kernels::InstructionSet> instruction_set;  // none: the best
};

// A loaded model with sequences whose context is in its cache.
class Contestant {
 public:
  static absl::StatusOr<std::unique_ptr<Contestant>> Load(const std::string& name,
                                                          const std::filesystem::path& folder,
                                                          const ContestantOptions& options);

  // Seconds of one step of it, the mean of a round.
  absl::StatusOr<double> Time(const Scenario& scenario);

  const std::string& name() const { return name_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  RunnerDType dtype() const { return dtype_; }
  const ModelDescription& description() const { return runner_->description(); }

 private:
  struct Sequence {
    std::vector<TokenId> tokens;
    std::vector<int32_t> blocks;
    int32_t slot = 0;
  };

  Contestant() = default;
  absl::Status Prefill(const Sequence& sequence, int32_t length, bool sample);
  SequenceChunk Chunk(const Sequence& sequence, int32_t start, int32_t end, bool sample) const;
  absl::Status Step(absl::Span<const SequenceChunk> chunks);

  std::string name_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  RunnerDType dtype_ = RunnerDType::kFloat32;
  std::unique_ptr<ModelRunner> runner_;
  SamplingParams greedy_{.temperature = 0.0f};
  int32_t steps_ = 0;
  std::vector<Sequence> decoding_;  // [max_batch]
  Sequence prefilling_;
};

}  // namespace ddl::bench

#endif  // DDL_BENCH_CONTESTANT_H_
