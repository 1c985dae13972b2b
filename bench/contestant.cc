#include "bench/contestant.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

namespace ddl::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int32_t kKvBlockSize = 16;  // tokens

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

absl::StatusOr<std::unique_ptr<Contestant>> Contestant::Load(const std::string& name,
                                                             const std::filesystem::path& folder,
                                                             const ContestantOptions& options) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(folder);
  if (!checkpoint.ok()) return checkpoint.status();
  auto contestant = std::unique_ptr<Contestant>(new Contestant());
  Contestant& c = *contestant;
  c.name_ = name;
  c.steps_ = options.steps;
  c.checkpoint_ = std::make_shared<const Checkpoint>(*std::move(checkpoint));
  const bool is_stored_in_bfloat16 = c.checkpoint_->stored_type() == StoredType::kBFloat16;
  c.dtype_ = options.dtype.value_or(is_stored_in_bfloat16 ? RunnerDType::kBFloat16
                                                          : RunnerDType::kFloat32);

  int32_t decode_length = 0, prefill_length = 0;
  for (const Scenario& scenario : options.scenarios) {
    (scenario.is_prefill ? prefill_length : decode_length) =
        scenario.tokens + (scenario.is_prefill ? 0 : options.steps);
  }
  const auto blocks = [](int32_t tokens) { return (tokens + kKvBlockSize - 1) / kKvBlockSize; };
  RunnerOptions runner_options;
  runner_options.device = options.device;
  runner_options.dtype = c.dtype_;
  runner_options.instruction_set = options.instruction_set;
  runner_options.quantization = options.quantization;
  runner_options.kv_block_size = kKvBlockSize;
  runner_options.kv_num_blocks = options.max_batch * blocks(decode_length) + blocks(prefill_length);
  runner_options.max_sequences = options.max_batch + 1;
  runner_options.max_step_tokens = kMaxStepTokens;
  runner_options.max_context_length = std::max(decode_length, prefill_length);
  runner_options.num_threads = options.threads;
  absl::StatusOr<std::unique_ptr<ModelRunner>> runner =
      ModelRunner::Create(c.checkpoint_, runner_options);
  if (!runner.ok()) return runner.status();
  c.runner_ = *std::move(runner);

  std::mt19937 random(1);
  std::uniform_int_distribution<TokenId> token(
      0, static_cast<TokenId>(c.description().vocab_size - 1));
  int32_t next_block = 0;
  const auto make = [&](int32_t length, int32_t slot) {
    Sequence sequence;
    sequence.slot = slot;
    for (int32_t i = 0; i < length; ++i) sequence.tokens.push_back(token(random));
    for (int32_t i = 0; i < blocks(length); ++i) sequence.blocks.push_back(next_block++);
    return sequence;
  };
  c.prefilling_ = make(prefill_length, options.max_batch);
  if (decode_length > 0) {
    for (int32_t i = 0; i < options.max_batch; ++i) {
      c.decoding_.push_back(make(decode_length, i));
      // Real keys and values: pages that nobody wrote would all be one, and quick to read.
      if (absl::Status status = c.Prefill(c.decoding_.back(), decode_length - options.steps, false);
          !status.ok()) {
        return status;
      }
    }
  }
  return contestant;
}

SequenceChunk Contestant::Chunk(const Sequence& sequence, int32_t start, int32_t end,
                                bool sample) const {
  SequenceChunk chunk;
  chunk.tokens = absl::MakeConstSpan(sequence.tokens).first(end);
  chunk.start = start;
  chunk.block_table = sequence.blocks;
  chunk.slot = sequence.slot;
  if (sample) {
    chunk.sample.emplace();
    chunk.sample->params = &greedy_;
    chunk.sample->vocab_size = static_cast<TokenId>(runner_->description().vocab_size);
  }
  return chunk;
}

absl::Status Contestant::Step(absl::Span<const SequenceChunk> chunks) {
  const absl::StatusOr<std::vector<ChunkOutput>> outputs = runner_->Forward(chunks);
  if (!outputs.ok()) return outputs.status();
  for (const ChunkOutput& output : *outputs) {
    if (!output.status.ok()) return output.status;
  }
  return absl::OkStatus();
}

absl::Status Contestant::Prefill(const Sequence& sequence, int32_t length, bool sample) {
  for (int32_t start = 0; start < length; start += kMaxStepTokens) {
    const int32_t end = std::min(length, start + kMaxStepTokens);
    const SequenceChunk chunk = Chunk(sequence, start, end, sample && end == length);
    if (absl::Status status = Step({&chunk, 1}); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<double> Contestant::Time(const Scenario& scenario) {
  const Clock::time_point start = Clock::now();
  if (scenario.is_prefill) {
    if (absl::Status status = Prefill(prefilling_, scenario.tokens, true); !status.ok()) {
      return status;
    }
    return Seconds(Clock::now() - start);
  }
  for (int32_t step = 0; step < steps_; ++step) {
    const int32_t position = scenario.tokens + step;
    std::vector<SequenceChunk> chunks;
    chunks.reserve(scenario.batch);
    for (int32_t i = 0; i < scenario.batch; ++i) {
      chunks.push_back(Chunk(decoding_[i], position, position + 1, true));
    }
    if (absl::Status status = Step(chunks); !status.ok()) return status;
  }
  return Seconds(Clock::now() - start) / steps_;
}

}  // namespace ddl::bench
