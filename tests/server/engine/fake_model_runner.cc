#include "tests/server/engine/fake_model_runner.h"

#include <algorithm>
#include <map>
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

SampledToken Scored(uint64_t state, TokenId id, int32_t logprobs) {
  SampledToken token;
  token.id = id;
  token.logprob = -static_cast<float>(Mix(state, id) % 1024) / 256;
  for (int32_t i = 0; i < logprobs; ++i) token.top.push_back({i, -0.5f * i});
  return token;
}

SampledToken SampleFrom(uint64_t state, const SampleRequest& sample) {
  const auto banned = [&](TokenId id) {
    return std::ranges::find(sample.banned, id) != sample.banned.end();
  };
  uint64_t number = state;
  const SamplingParams params = sample.params != nullptr ? *sample.params : SamplingParams{};
  if (params.temperature > 0) number = Mix(Mix(state, params.seed), sample.index);
  for (const TokenId id : sample.prompt) number = Mix(number, id);
  for (const TokenId id : sample.generated) number = Mix(number, id + 1000);
  SampledToken token;
  token.id = static_cast<TokenId>(number % sample.vocab_size);
  while (banned(token.id)) token.id = (token.id + 1) % sample.vocab_size;
  return Scored(state, token.id, sample.logprobs);
}

std::vector<float> VectorOf(uint64_t state, const HiddenReadout& readout) {
  const bool flat = readout.kind == HiddenReadout::Kind::kStateFlat;
  const uint64_t which = static_cast<uint64_t>(readout.kind) * 100 +
                         static_cast<uint64_t>(readout.layer.value_or(0)) * 10 + readout.channel;
  std::vector<float> vector;
  for (int64_t i = 0; i < FakeModelRunner::kHiddenSize * (flat ? 2 : 1); ++i) {
    vector.push_back(static_cast<float>(Mix(state, i + 1000 * which) % 2000) / 1000 - 1);
  }
  return vector;
}

float BetaOf(uint64_t state, int32_t sublayer) {
  return static_cast<float>(Mix(state, 77 + sublayer) % 2000) / 1000;
}

float UpdateRatioOf(uint64_t state, int32_t sublayer) {
  return static_cast<float>(Mix(state, 177 + sublayer) % 3000) / 1000;
}

}  // namespace

FakeModelRunner::FakeModelRunner(const Options& options)
    : options_(options),
      kv_(static_cast<size_t>(options.kv_num_blocks) * options.kv_block_size),
      slots_(options.max_sequences),
      block_tails_(options.kv_num_blocks) {
  description_.dtype = "float32";
  description_.device = "cpu";
  description_.instruction_set = "avx2";
  description_.num_layers = 1;
  description_.num_heads = 1;
  description_.hidden_size = kHiddenSize;
  description_.value_channels = 2;
  description_.vocab_size = options.vocab_size;
  description_.block_size = 1024;
  description_.kv_block_size = options.kv_block_size;
  description_.kv_num_blocks = options.kv_num_blocks;
  description_.max_sequences = options.max_sequences;
  description_.max_in_flight_steps = options.max_in_flight_steps;
  description_.first_steps_are_slow = options.first_steps_are_slow;
}

SampledToken FakeModelRunner::Next(absl::Span<const TokenId> tokens, const SampleRequest& sample) {
  return SampleFrom(StateOf(tokens), sample);
}

std::vector<float> FakeModelRunner::Hidden(absl::Span<const TokenId> tokens,
                                           const HiddenReadout& readout) {
  return VectorOf(StateOf(tokens), readout);
}

SampledToken FakeModelRunner::Score(absl::Span<const TokenId> tokens, TokenId next,
                                    int32_t logprobs) {
  return Scored(StateOf(tokens), next, logprobs);
}

float FakeModelRunner::Beta(absl::Span<const TokenId> tokens, int32_t sublayer) {
  return BetaOf(StateOf(tokens), sublayer);
}

float FakeModelRunner::UpdateRatio(absl::Span<const TokenId> tokens, int32_t sublayer) {
  return UpdateRatioOf(StateOf(tokens), sublayer);
}

FakeModelRunner::BegunChunk::BegunChunk(const SequenceChunk& begun)
    : chunk(begun),
      tokens(begun.tokens.begin(), begun.tokens.end()),
      block_table(begun.block_table.begin(), begun.block_table.end()) {
  if (chunk.sample.has_value()) {
    banned.assign(chunk.sample->banned.begin(), chunk.sample->banned.end());
    prompt.assign(chunk.sample->prompt.begin(), chunk.sample->prompt.end());
    generated.assign(chunk.sample->generated.begin(), chunk.sample->generated.end());
    if (chunk.sample->params != nullptr) params = *chunk.sample->params;
  }
  if (chunk.score.has_value()) {
    targets.assign(chunk.score->targets.begin(), chunk.score->targets.end());
  }
}

bool FakeModelRunner::BegunChunk::IsAsBegun() const {
  const bool sample =
      !chunk.sample.has_value() || (chunk.sample->banned == absl::MakeConstSpan(banned) &&
                                    chunk.sample->prompt == absl::MakeConstSpan(prompt) &&
                                    chunk.sample->generated == absl::MakeConstSpan(generated) &&
                                    (chunk.sample->params == nullptr ||
                                     (chunk.sample->params->seed == params.seed &&
                                      chunk.sample->params->temperature == params.temperature)));
  // A last token that was not known may be by now.
  const size_t known = tokens.size() - (chunk.last_token_from.has_value() ? 1 : 0);
  return sample && chunk.tokens.size() == tokens.size() &&
         chunk.tokens.first(known) == absl::MakeConstSpan(tokens).first(known) &&
         chunk.block_table == absl::MakeConstSpan(block_table) &&
         (!chunk.score.has_value() || chunk.score->targets == absl::MakeConstSpan(targets));
}

void FakeModelRunner::Expect(bool holds, absl::string_view what) {
  if (!holds) violations_.push_back(absl::StrCat("step ", num_steps_, ": ", what));
}

void FakeModelRunner::Begin(absl::Span<const SequenceChunk> chunks) {
  ++num_begun_;
  if (on_begin) on_begin(chunks);
  Expect(static_cast<int32_t>(steps_.size()) < options_.max_in_flight_steps,
         "more than max_in_flight_steps");
  for (const SequenceChunk& chunk : chunks) {
    if (!chunk.last_token_from.has_value()) continue;
    const auto from = static_cast<size_t>(*chunk.last_token_from);
    Expect(!steps_.empty() && from < steps_.back().chunks.size() &&
               steps_.back().chunks[from].chunk.sample.has_value(),
           "a pending token is sampled by the previous step, which is in flight");
    Expect(!chunk.sample.has_value() || chunk.sample->generated.empty(),
           "how a token is sampled depends on no pending one");
  }
  if (!steps_.empty()) {
    for (const BegunChunk& begun : steps_.back().chunks) {
      Expect(!NeedsHost(begun.chunk),
             "nothing of a step is left to the host when another is begun");
    }
  }
  steps_.push_back({.chunks = {chunks.begin(), chunks.end()}});
}

absl::StatusOr<std::vector<ChunkOutput>> FakeModelRunner::Finish() {
  ++num_steps_;
  Expect(!steps_.empty(), "a step is begun before it is finished");
  if (steps_.empty()) return absl::InternalError(violations_.front());
  BegunStep step = std::move(steps_.front());
  steps_.pop_front();
  std::vector<SequenceChunk> chunks;
  for (BegunChunk& begun : step.chunks) {
    Expect(begun.IsAsBegun(), "what a chunk refers to stays as it is until Finish");
    SequenceChunk& chunk = chunks.emplace_back(begun.chunk);
    if (!chunk.last_token_from.has_value()) continue;
    begun.tokens.back() = drawn_[*chunk.last_token_from];
    chunk.tokens = begun.tokens;
  }
  largest_step_sequences_ = std::max(largest_step_sequences_, static_cast<int>(chunks.size()));
  CheckStep(chunks, step.after_failure);
  if (!violations_.empty()) {
    drawn_.assign(chunks.size(), 0);
    return absl::InternalError(violations_.front());
  }
  absl::Status status = on_forward ? on_forward(chunks) : absl::OkStatus();
  std::vector<ChunkOutput> outputs;
  for (const SequenceChunk& chunk : chunks) {
    outputs.push_back(Compute(chunk));
    if (!status.ok()) Ruin(chunk);
  }
  drawn_.clear();
  for (const ChunkOutput& output : outputs) {
    drawn_.push_back(output.sampled.has_value() ? output.sampled->id : 0);
  }
  if (!status.ok()) {
    for (BegunStep& later : steps_) later.after_failure = true;
    return status;
  }
  return outputs;
}

void FakeModelRunner::CheckStep(absl::Span<const SequenceChunk> chunks, bool after_failure) {
  int64_t positions = 0;
  std::set<int32_t> slots;
  std::map<int32_t, int32_t> readers;  // chunks by block
  for (const SequenceChunk& chunk : chunks) {
    const auto end = static_cast<int32_t>(chunk.tokens.size());
    Expect(0 <= chunk.start && chunk.start < end, "a chunk has at least one position");
    positions += end - chunk.start;
    Expect(0 <= chunk.slot && chunk.slot < options_.max_sequences, "slots are in range");
    Expect(slots.insert(chunk.slot).second, "a slot belongs to one sequence");
    Expect(static_cast<int64_t>(chunk.block_table.size()) * options_.kv_block_size >= end,
           "the block table covers the tokens");
    for (const int32_t block : chunk.block_table) {
      Expect(0 <= block && block < options_.kv_num_blocks, "blocks are in range");
      ++readers[block];
    }
    if (chunk.tails_from_block.has_value()) {
      Expect(chunk.start > 0 && chunk.start % options_.kv_block_size == 0 &&
                 chunk.block_table[chunk.start / options_.kv_block_size - 1] ==
                     *chunk.tails_from_block,
             "tails come from the block before the chunk");
    } else {
      Expect(chunk.start == 0 || after_failure || chunk.start == slots_[chunk.slot].end,
             "a slot holds the tails of the position before the chunk");
    }
    if (chunk.score.has_value()) {
      Expect(!chunk.score->targets.empty() &&
                 static_cast<int32_t>(chunk.score->targets.size()) <= end - chunk.start,
             "a target for each position at most");
    }
    for (const TokenId token : chunk.tokens) {
      Expect(0 <= token && token < options_.vocab_size, "tokens are in the vocabulary");
    }
  }
  // Blocks may be shared, but what is written, or will be, belongs to one sequence.
  for (const SequenceChunk& chunk : chunks) {
    for (size_t i = chunk.start / options_.kv_block_size; i < chunk.block_table.size(); ++i) {
      Expect(readers[chunk.block_table[i]] == 1, "a block that is written belongs to one sequence");
    }
  }
  Expect(!chunks.empty(), "a step has at least one chunk");
  Expect(positions <= options_.max_step_tokens, "a step has at most max_step_tokens positions");
}

void FakeModelRunner::Ruin(const SequenceChunk& chunk) {
  slots_[chunk.slot] = {};
  for (size_t i = chunk.start; i < chunk.tokens.size(); ++i) {
    const int32_t block = chunk.block_table[i / options_.kv_block_size];
    kv_[static_cast<size_t>(block) * options_.kv_block_size + i % options_.kv_block_size] = 0;
    block_tails_[block] = 0;
  }
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
  Slot& slot = slots_[chunk.slot];
  uint64_t& tail = slot.tail;
  if (chunk.start == 0) tail = kEmptyTail;
  if (chunk.tails_from_block.has_value()) tail = block_tails_[*chunk.tails_from_block];

  ChunkOutput output;
  std::vector<uint64_t> states;  // of each position
  for (int32_t i = chunk.start; i < end; ++i) {
    kv_at(i) = KvOf(chunk.tokens[i], i);
    attended = Mix(attended, kv_at(i));
    tail = Mix(tail, chunk.tokens[i]);
    if ((i + 1) % options_.kv_block_size == 0) {
      block_tails_[chunk.block_table[i / options_.kv_block_size]] = tail;
    }
    states.push_back(StateOf(attended, tail, chunk.tokens[i]));
    if (chunk.hidden == Rows::kAll || (chunk.hidden == Rows::kLast && i + 1 == end)) {
      const std::vector<float> vector = VectorOf(states.back(), chunk.readout);
      output.hidden.insert(output.hidden.end(), vector.begin(), vector.end());
    }
  }
  slot.end = end;
  if (chunk.score.has_value()) {
    for (size_t i = 0; i < chunk.score->targets.size(); ++i) {
      output.scored.push_back(Scored(states[i], chunk.score->targets[i], chunk.score->logprobs));
    }
  }
  if (chunk.ddl_stats) {
    for (int32_t sublayer = 0; sublayer < 2; ++sublayer) {
      for (const uint64_t state : states) {
        output.beta.push_back(BetaOf(state, sublayer));
        output.update_ratio.push_back(UpdateRatioOf(state, sublayer));
      }
    }
  }
  if (is_not_finite && is_not_finite(chunk)) {
    ChunkOutput failed;
    failed.status = absl::InternalError("the logits are not finite");
    return failed;
  }
  if (chunk.sample.has_value()) output.sampled = SampleFrom(states.back(), *chunk.sample);
  return output;
}

}  // namespace ddl
