#ifndef DDL_TESTS_SERVER_ENGINE_FAKE_MODEL_RUNNER_H_
#define DDL_TESTS_SERVER_ENGINE_FAKE_MODEL_RUNNER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/model_runner.h"

namespace ddl {

// A small deterministic model that keeps its state where a real one does: "K/V" in blocks and
// positions, "tails" in slots. What comes after a sequence depends on all that was stored for
// it, read back through the block table and slot given, so that a wrong table, a block owned
// twice, a wrong start or a stale slot shows up as wrong tokens. Tails are also kept with each
// block, as they were at its last position, for sequences that begin with blocks that others
// computed. The pure functions below say what is right, from the tokens alone. A step is computed
// in // its Finish; what its chunks refer to must be then what it was in Begin. A last token that
// is not known it takes from the step before, as a device would.
class FakeModelRunner final : public ModelRunner {
 public:
  struct Options {
    int32_t kv_block_size = 4;  // tokens
    int32_t kv_num_blocks = 64;
    int32_t max_sequences = 8;
    int32_t max_step_tokens = 64;
    TokenId vocab_size = 50;
    int32_t max_in_flight_steps = 1;
    bool first_steps_are_slow = true;
  };
  static constexpr int64_t kHiddenSize = 3;

  explicit FakeModelRunner(const Options& options);

  const ModelDescription& description() const override { return description_; }
  void Begin(absl::Span<const SequenceChunk> chunks) override;
  absl::StatusOr<std::vector<ChunkOutput>> Finish() override;

  // The token that follows `tokens`, and the vector of their last position.
  static SampledToken Next(absl::Span<const TokenId> tokens, const SampleRequest& sample);
  static std::vector<float> Hidden(absl::Span<const TokenId> tokens,
                                   const HiddenReadout& readout = {});
  // What the model gives `next` after `tokens`.
  static SampledToken Score(absl::Span<const TokenId> tokens, TokenId next, int32_t logprobs);
  // Gate and update of one sublayer, of two, at the last position of `tokens`.
  static float Beta(absl::Span<const TokenId> tokens, int32_t sublayer);
  static float UpdateRatio(absl::Span<const TokenId> tokens, int32_t sublayer);

  // Called at the beginning of every Begin.
  std::function<void(absl::Span<const SequenceChunk>)> on_begin;
  // Called when a step is computed, at the beginning of its Finish; a status that is not OK is its
  // result, after the caches of the step's sequences have been overwritten.
  std::function<absl::Status(absl::Span<const SequenceChunk>)> on_forward;
  // Chunks for which it is true fail alone, as with logits that are not finite.
  std::function<bool(const SequenceChunk&)> is_not_finite;

  int num_begun() const { return num_begun_; }
  int num_steps() const { return num_steps_; }  // computed
  int largest_step_sequences() const { return largest_step_sequences_; }
  // What the engine did that no runner has to put up with: budgets exceeded, blocks shared ...
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  // A chunk, and what it referred to when its step was begun.
  struct BegunChunk {
    explicit BegunChunk(const SequenceChunk& begun);
    bool IsAsBegun() const;

    SequenceChunk chunk;
    std::vector<TokenId> tokens, banned, prompt, generated, targets;
    std::vector<int32_t> block_table;
    SamplingParams params;
  };

  void Expect(bool holds, absl::string_view what);
  struct BegunStep {
    std::vector<BegunChunk> chunks;
    bool after_failure = false;  // of a step that was in flight when it was begun
  };

  void CheckStep(absl::Span<const SequenceChunk> chunks, bool after_failure);
  ChunkOutput Compute(const SequenceChunk& chunk);
  // Overwrites what a chunk has computed.
  void Ruin(const SequenceChunk& chunk);

  const Options options_;
  ModelDescription description_;
  std::vector<uint64_t> kv_;  // [kv_num_blocks, kv_block_size]: a mix of token and position
  struct Slot {
    uint64_t tail = 0;  // a mix of all tokens so far
    int32_t end = 0;    // of the chunk that left it there
  };
  std::vector<Slot> slots_;            // [max_sequences]
  std::vector<uint64_t> block_tails_;  // [kv_num_blocks]: tails at the last position
  std::deque<BegunStep> steps_;        // begun, not finished
  std::vector<TokenId> drawn_;         // by chunk of the step that was last computed; 0: none
  int num_begun_ = 0;
  int num_steps_ = 0;
  int largest_step_sequences_ = 0;
  std::vector<std::string> violations_;
};

}  // namespace ddl

#endif  // DDL_TESTS_SERVER_ENGINE_FAKE_MODEL_RUNNER_H_
