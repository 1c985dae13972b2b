#include "tests/server/engine/fake_model_runner.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ddl {
namespace {

constexpr uint64_t kEmptyTail = 0x243f6a8885a308d3;

uint64_t Mix(uint64_t a, uint64_t b) {  // splitmix64's finaliser
  uint64_t x = a * 0x9e3779b97f4a7c15 + b + 0x7f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t KvOf(TokenId token, int32_t position) { return Mix(token, position); }

// What the model knows after a position: what it attends to, its tail, and the tokens given.
uint64_t StateOf(uint64_t attended, uint64_t tail, TokenId token) {
  return Mix(Mix(attended, tail), token);
}

uint64_t StateOf(absl::Span<const TokenId> tokens) {
  uint64_t attended = 0;
  uint64_t tail = kEmptyTail;
  for (size_t i = 0; i < tokens.size(); ++i) {
    attended = Mix(attended, KvOf(tokens[i], static_cast<int32_t>(i)));
    tail = Mix(tail, tokens[i]);
  }
  return StateOf(attended, tail, tokens.back());
}

SampledToken Draw(uint64_t state, const SampleRequest& sample) {
  const auto banned = [&](TokenId id) {
    return std::ranges::find(sample.banned, id) != sample.banned.end();
  };
  const SamplingParams defaults;
  const SamplingParams& params = sample.params != nullptr ? *sample.params : defaults;
  uint64_t number = state;
  if (params.temperature > 0) number = Mix(Mix(state, params.seed), sample.index);
  SampledToken token;
  token.id = static_cast<TokenId>(number % sample.vocab_size);
  while (banned(token.id)) token.id = (token.id + 1) % sample.vocab_size;
  token.logprob = -static_cast<float>(number % 1024) / 256;
  for (int32_t i = 0; i < sample.logprobs; ++i) token.top.push_back({i, -0.5f * i});
  return token;
}

std::vector<float> VectorOf(uint64_t state) {
  std::vector<float> vector;
  for (int64_t i = 0; i < FakeModelRunner::kHiddenSize; ++i) {
    vector.push_back(static_cast<float>(Mix(state, i) % 2000) / 1000 - 1);
  }
  return vector;
}

}  // namespace

FakeModelRunner::FakeModelRunner(const Options& options)
    : options_(options),
      kv_(static_cast<size_t>(options.kv_num_blocks) * options.kv_block_size),
      tails_(options.max_sequences) {
  description_.dtype = "float32";
  description_.device = "cpu";
  description_.num_layers = 1;
  description_.num_heads = 1;
  description_.hidden_size = kHiddenSize;
  description_.value_channels = 1;
  description_.vocab_size = options.vocab_size;
  description_.block_size = 1024;
  description_.kv_block_size = options.kv_block_size;
  description_.kv_num_blocks = options.kv_num_blocks;
  description_.max_sequences = options.max_sequences;
}

SampledToken FakeModelRunner::Next(absl::Span<const TokenId> tokens, const SampleRequest& sample) {
  return Draw(StateOf(tokens), sample);
}

std::vector<float> FakeModelRunner::Hidden(absl::Span<const TokenId> tokens) {
  return VectorOf(StateOf(tokens));
}

absl::StatusOr<std::vector<ChunkOutput>> FakeModelRunner::Forward(
    absl::Span<const SequenceChunk> chunks) {
  ++num_steps_;
  largest_step_sequences_ = std::max(largest_step_sequences_, static_cast<int>(chunks.size()));
  CheckStep(chunks);
  if (!violations_.empty()) return absl::InternalError(violations_.front());
  absl::Status status = on_forward ? on_forward(chunks) : absl::OkStatus();
  std::vector<ChunkOutput> outputs;
  for (const SequenceChunk& chunk : chunks) {
    outputs.push_back(Compute(chunk));
    if (!status.ok()) tails_[chunk.slot] = 0;
  }
  if (!status.ok()) return status;
  return outputs;
}

void FakeModelRunner::CheckStep(absl::Span<const SequenceChunk> chunks) {
  const auto expect = [this](bool holds, absl::string_view what) {
    if (!holds) violations_.push_back(absl::StrCat("step ", num_steps_, ": ", what));
  };
  int64_t positions = 0;
  std::set<int32_t> slots;
  std::set<int32_t> blocks;
  for (const SequenceChunk& chunk : chunks) {
    const auto end = static_cast<int32_t>(chunk.tokens.size());
    expect(0 <= chunk.start && chunk.start < end, "a chunk has at least one position");
    positions += end - chunk.start;
    expect(0 <= chunk.slot && chunk.slot < options_.max_sequences, "slots are in range");
    expect(slots.insert(chunk.slot).second, "a slot belongs to one sequence");
    expect(static_cast<int64_t>(chunk.block_table.size()) * options_.kv_block_size >= end,
           "the block table covers the tokens");
    for (const int32_t block : chunk.block_table) {
      expect(0 <= block && block < options_.kv_num_blocks, "blocks are in range");
      expect(blocks.insert(block).second, "a block belongs to one sequence");
    }
    for (const TokenId token : chunk.tokens) {
      expect(0 <= token && token < options_.vocab_size, "tokens are in the vocabulary");
    }
  }
  expect(!chunks.empty(), "a step has at least one chunk");
  expect(positions <= options_.max_step_tokens, "a step has at most max_step_tokens positions");
}

ChunkOutput FakeModelRunner::Compute(const SequenceChunk& chunk) {
  const auto end = static_cast<int32_t>(chunk.tokens.size());
  const auto kv_at = [&](int32_t position) -> uint64_t& {
    return kv_[static_cast<size_t>(chunk.block_table[position / options_.kv_block_size]) *
                   options_.kv_block_size +
               position % options_.kv_block_size];
  };
  uint64_t attended = 0;
  for (int32_t i = 0; i < chunk.start; ++i) attended = Mix(attended, kv_at(i));
  uint64_t& tail = tails_[chunk.slot];
  if (chunk.start == 0) tail = kEmptyTail;

  ChunkOutput output;
  uint64_t state = 0;
  for (int32_t i = chunk.start; i < end; ++i) {
    kv_at(i) = KvOf(chunk.tokens[i], i);
    attended = Mix(attended, kv_at(i));
    tail = Mix(tail, chunk.tokens[i]);
    state = StateOf(attended, tail, chunk.tokens[i]);
    if (chunk.hidden == Rows::kAll || (chunk.hidden == Rows::kLast && i + 1 == end)) {
      const std::vector<float> vector = VectorOf(state);
      output.hidden.insert(output.hidden.end(), vector.begin(), vector.end());
    }
  }
  if (is_not_finite && is_not_finite(chunk)) {
    return {.status = absl::InternalError("the logits are not finite"),
            .sampled = {},
            .hidden = {},
            .logits = {},
            .state = {}};
  }
  if (chunk.sample.has_value()) output.sampled = Draw(state, *chunk.sample);
  return output;
}

}  // namespace ddl
