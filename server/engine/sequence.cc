#include "server/engine/sequence.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace ddl {

Sequence::Sequence(const SequenceRank& rank, std::vector<TokenId> prompt,
                   const SequenceOptions& options)
    : rank_(rank),
      options_(options),
      num_prompt_tokens_(static_cast<int32_t>(prompt.size())),
      tokens_(std::move(prompt)) {
  DDL_CHECK(!tokens_.empty(), "a sequence has at least one token");
}

SequenceChunk Sequence::ChunkUpTo(int32_t end) const {
  DDL_CHECK(holds_slot() && num_computed_ < end && end <= num_tokens(), "no such chunk");
  SequenceChunk chunk;
  chunk.tokens = tokens().subspan(0, end);
  chunk.start = num_computed_;
  chunk.block_table = blocks_.blocks();
  chunk.slot = slot();
  chunk.tails_from_block = tails_from_block_;
  return chunk;
}

ComputedPositions Sequence::MarkBegun(int32_t end) {
  DDL_CHECK(num_computed_ < end && end <= num_tokens(), "not a chunk of this sequence");
  ComputedPositions computed;
  const int32_t first_new = std::clamp(max_computed_, num_computed_, end);
  const int32_t first_generated = std::clamp(num_prompt_tokens_, first_new, end);
  computed.again = first_new - num_computed_;
  computed.prompt = first_generated - first_new;
  computed.generated = end - first_generated;
  num_computed_ = end;
  max_computed_ = std::max(max_computed_, end);
  tails_from_block_.reset();
  return computed;
}

void Sequence::Append(TokenId token) {
  AppendPending();
  SetPending(token);
}

void Sequence::AppendPending() {
  DDL_CHECK(generates(), "a token appended to an input");
  tokens_.push_back(kPendingToken);
  ++num_pending_;
}

void Sequence::SetPending(TokenId token) {
  DDL_CHECK(num_pending_ > 0, "a token of no step");
  tokens_[tokens_.size() - num_pending_] = token;
  --num_pending_;
}

void Sequence::CacheFullBlocks(int32_t end) {
  DDL_CHECK(end <= num_computed_ && end <= num_tokens() - num_pending_,
            "blocks cached before their tokens are sampled or computed");
  blocks_.CacheFullBlocks(tokens().first(end));
}

bool Sequence::ReserveBlocks(BlockManager& manager) { return blocks_.Grow(manager, num_tokens()); }

int32_t Sequence::NumSharedBlocks(const BlockManager& manager) const {
  return (num_prompt_tokens_ - 1) / manager.block_size();
}

void Sequence::MatchPrefix(BlockManager& manager) {
  BeginAt(blocks_.MatchPrefix(manager, tokens().first(num_tokens() - 1)));
}

void Sequence::ShareBlocks(const Sequence& other, int32_t count, const BlockManager& manager) {
  blocks_.ShareBeginning(other.blocks_, count);
  BeginAt(count * manager.block_size());
}

void Sequence::BeginAt(int32_t position) {
  num_computed_ = position;
  if (position > 0) tails_from_block_ = blocks_.blocks().back();
}

int32_t Sequence::Start(int32_t slot) {
  slot_ = slot;
  ++num_runs_;
  tokens_.reserve(std::max(options_.max_tokens, num_tokens()));
  state_ = SequenceState::kRunning;
  was_preempted_ = false;
  const int32_t found = std::max(0, std::min(num_computed_, num_prompt_tokens_) - max_computed_);
  max_computed_ = std::max(max_computed_, num_computed_);
  return found;
}

void Sequence::Free() {
  slot_.reset();
  blocks_.Free();
  num_computed_ = 0;
  tails_from_block_.reset();
}

}  // namespace ddl
