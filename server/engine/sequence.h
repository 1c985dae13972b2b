#ifndef DDL_SERVER_ENGINE_SEQUENCE_H_
#define DDL_SERVER_ENGINE_SEQUENCE_H_

#include <compare>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "model/model_runner.h"
#include "model/token.h"
#include "server/engine/block_manager.h"
#include "server/engine/request.h"

namespace ddl {

// Who goes first when something is scarce, smaller first: by priority, then first come first
// served, then in the order of an Embed's inputs. Unique, and fixed for a sequence's life.
struct SequenceRank {
  Priority priority = Priority::kNormal;
  uint64_t request_id = 0;  // given out in the order of arrival
  int32_t index = 0;        // of the input in its request

  friend auto operator<=>(const SequenceRank&, const SequenceRank&) = default;
};

// Positions that a chunk has brought, by what they were computed for.
struct ComputedPositions {
  int32_t prompt = 0;
  int32_t generated = 0;
  int32_t again = 0;  // of either kind, computed before and lost to a preemption
};

// One list of tokens on its way through the model: a prompt with its completion, or one input of
// an Embed. It waits, holding nothing; runs, holding a slot and blocks for every token it has;
// and falls back to waiting when it is preempted. Its tokens stay through all of it.
class Sequence {
 public:
  // `generates`: tokens will be appended. The prompt has at least one token.
  Sequence(const SequenceRank& rank, std::vector<TokenId> prompt, bool generates);

  const SequenceRank& rank() const { return rank_; }
  bool generates() const { return generates_; }

  absl::Span<const TokenId> tokens() const { return tokens_; }  // valid until Append
  int32_t num_tokens() const { return static_cast<int32_t>(tokens_.size()); }
  int32_t num_generated() const { return num_tokens() - num_prompt_tokens_; }
  // Positions [0, num_computed) are in the caches.
  int32_t num_computed() const { return num_computed_; }
  int32_t num_remaining() const { return num_tokens() - num_computed_; }
  // Only the token drawn last is to be computed.
  bool IsDecode() const { return num_generated() > 0 && num_remaining() == 1; }

  // The chunk [num_computed, end) as the runner takes it, while running; nothing asked for yet.
  // Valid until the sequence changes.
  SequenceChunk ChunkUpTo(int32_t end) const;
  // It has been computed.
  ComputedPositions MarkComputed(int32_t end);
  void Append(TokenId token);

  // What it holds of the caches; the scheduler's business.
  bool running() const { return slot_.has_value(); }
  int32_t slot() const { return *slot_; }  // while running
  absl::Span<const int32_t> block_table() const { return blocks_.blocks(); }
  void set_slot(int32_t slot) { slot_ = slot; }
  // Takes the blocks that its tokens still lack. False, with nothing changed, when too few are
  // free.
  [[nodiscard]] bool ReserveBlocks(BlockManager& manager);
  // Gives back slot and blocks, and with them every computed position.
  void Release();

 private:
  const SequenceRank rank_;
  const bool generates_;
  const int32_t num_prompt_tokens_;
  std::vector<TokenId> tokens_;
  int32_t num_computed_ = 0;
  int32_t max_computed_ = 0;  // the most that num_computed_ has been
  std::optional<int32_t> slot_;
  BlockTable blocks_;
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_SEQUENCE_H_
