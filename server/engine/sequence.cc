#include "server/engine/sequence.h"

#include <algorithm>
#include <utility>

#include "model/check.h"

namespace ddl {

Sequence::Sequence(const SequenceRank& rank, std::vector<TokenId> prompt, bool generates)
    : rank_(rank),
      generates_(generates),
      num_prompt_tokens_(static_cast<int32_t>(prompt.size())),
      tokens_(std::move(prompt)) {
  DDL_CHECK(!tokens_.empty(), "a sequence has at least one token");
}

SequenceChunk Sequence::ChunkUpTo(int32_t end) const {
  DDL_CHECK(running() && num_computed_ < end && end <= num_tokens(), "no such chunk");
  SequenceChunk chunk;
  chunk.tokens = tokens().subspan(0, end);
  chunk.start = num_computed_;
  chunk.block_table = blocks_.blocks();
  chunk.slot = slot();
  return chunk;
}

ComputedPositions Sequence::MarkComputed(int32_t end) {
  DDL_CHECK(num_computed_ < end && end <= num_tokens(), "not a chunk of this sequence");
  ComputedPositions computed;
  const int32_t first_new = std::clamp(max_computed_, num_computed_, end);
  const int32_t first_generated = std::clamp(num_prompt_tokens_, first_new, end);
  computed.again = first_new - num_computed_;
  computed.prompt = first_generated - first_new;
  computed.generated = end - first_generated;
  num_computed_ = end;
  max_computed_ = std::max(max_computed_, end);
  return computed;
}

void Sequence::Append(TokenId token) {
  DDL_CHECK(generates_, "an embedded input never grows");
  tokens_.push_back(token);
}

bool Sequence::ReserveBlocks(BlockManager& manager) { return blocks_.Grow(manager, num_tokens()); }

void Sequence::Release() {
  slot_.reset();
  blocks_.Clear();
  num_computed_ = 0;
}

}  // namespace ddl
