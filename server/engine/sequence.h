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

class Sequence;

// Who goes first when something is scarce, smaller first: by priority, then first come first
// served, then in the order of a request's inputs or completions. Unique.
struct SequenceRank {
  Priority priority = Priority::kNormal;  // rises while the sequence waits
  uint64_t request_id = 0;                // given out in the order of arrival
  int32_t index = 0;                      // of the input or completion in its request

  // NOLINTNEXTLINE(modernize-use-nullptr): the compiler's comparison with 0
  friend auto operator<=>(const SequenceRank&, const SequenceRank&) = default;
};

// Positions that a chunk has brought, by what they were computed for.
struct ComputedPositions {
  int32_t prompt = 0;
  int32_t generated = 0;
  int32_t again = 0;  // of either kind, computed before and lost to a preemption
};

// The completions of one prompt: those of them that run, in no order. The scheduler's business.
struct PromptGroup {
  std::vector<const Sequence*> running;
};

struct SequenceOptions {
  bool generates = false;  // tokens will be appended
  // The most tokens that it will have. Up to so many are appended without moving those before,
  // which a step in flight may refer to.
  int32_t max_tokens = 0;
  // May begin with blocks of the prefix cache. Not when something is wanted of every
  // position.
  bool reads_prefix_cache = false;
  // Of several completions of one prompt: where they find each other, to share its blocks. Null:
  // nobody to share with. Must outlive the sequence.
  PromptGroup* group = nullptr;
  // Takes the beginning of its prompt from another of the group, if one runs; others may take it
  // from this one in any case.
  bool shares_prompt = false;
};

// Where a sequence is. Its tokens stay through all of it.
enum class SequenceState {
  kNew,      // not given to the scheduler yet
  kWaiting,  // holds nothing, and wants to run
  kRunning,  // holds a slot, and blocks for every token it has
  kPaused,   // is not to be computed; holds what it did, or nothing
};

// One list of tokens on its way through the model: a prompt with its completion, or one input of
// an Embed or a Score.
class Sequence {
 public:
  static constexpr TokenId kPendingToken = -1;

  // The prompt has at least one token.
  Sequence(const SequenceRank& rank, std::vector<TokenId> prompt, const SequenceOptions& options);

  const SequenceRank& rank() const { return rank_; }
  const SequenceOptions& options() const { return options_; }
  bool generates() const { return options_.generates; }

  // A token that is being sampled (AppendPending) is one of them, kPendingToken until SetPending.
  // Valid until more are appended than options().max_tokens, while the sequence has a slot once.
  absl::Span<const TokenId> tokens() const { return tokens_; }
  absl::Span<const TokenId> prompt() const { return tokens().first(num_prompt_tokens_); }
  absl::Span<const TokenId> generated() const { return tokens().subspan(num_prompt_tokens_); }
  int32_t num_tokens() const { return static_cast<int32_t>(tokens_.size()); }
  int32_t num_prompt_tokens() const { return num_prompt_tokens_; }
  int32_t num_generated() const { return num_tokens() - num_prompt_tokens_; }
  int32_t num_pending() const { return num_pending_; }
  // Positions [0, num_computed) are in the caches, or will be by the steps in flight.
  int32_t num_computed() const { return num_computed_; }
  int32_t num_remaining() const { return num_tokens() - num_computed_; }
  // Only the token sampled last, or being sampled, is to be computed.
  bool IsDecode() const { return num_generated() > 0 && num_remaining() == 1; }
  bool was_preempted() const { return was_preempted_; }  // since it last began to run

  // The chunk [num_computed, end) as the runner takes it, while running; nothing asked for yet. Its
  // block table is valid until the blocks change.
  SequenceChunk ChunkUpTo(int32_t end) const;
  // It is being computed: a step that begins later finds it in the caches.
  ComputedPositions MarkBegun(int32_t end);
  void Append(TokenId token);
  // A token that a step in flight samples; then what it was, the oldest first.
  void AppendPending();
  void SetPending(TokenId token);

  // --- The scheduler's business ---

  SequenceState state() const { return state_; }
  void set_state(SequenceState state) { state_ = state; }
  void set_priority(Priority priority) { rank_.priority = priority; }
  bool has_run() const { return max_computed_ > 0; }  // perhaps before a preemption
  bool holds_slot() const { return slot_.has_value(); }
  int32_t slot() const { return *slot_; }  // while it holds one
  absl::Span<const int32_t> block_table() const { return blocks_.blocks(); }
  // How often it has begun to run: what it has in the caches is of the last time.
  int32_t num_runs() const { return num_runs_; }
  // Takes the blocks that its tokens still lack. False, with nothing changed, when too few are
  // available.
  [[nodiscard]] bool ReserveBlocks(BlockManager& manager);
  // Blocks of the prompt that completions of it can share: full ones, without the last token,
  // which each computes for itself.
  int32_t NumSharedBlocks(const BlockManager& manager) const;
  // Begins with blocks of the prefix cache, before the last token; it holds none.
  void MatchPrefix(BlockManager& manager);
  // Begins with the first `count` blocks of another of its group, which has computed them.
  void ShareBlocks(const Sequence& other, int32_t count, const BlockManager& manager);
  // Enters the full blocks of the positions [0, end), which have been computed, into the prefix
  // cache.
  void CacheFullBlocks(int32_t end);
  // Begins to run with the blocks that it has taken. Returns how many of the prompt's positions
  // they bring that it has never had before.
  int32_t Start(int32_t slot);
  // Frees slot and blocks, and with them every computed position.
  void Free();
  void set_was_preempted(bool preempted) { was_preempted_ = preempted; }

 private:
  void BeginAt(int32_t position);

  SequenceRank rank_;
  const SequenceOptions options_;
  const int32_t num_prompt_tokens_;
  std::vector<TokenId> tokens_;
  int32_t num_pending_ = 0;  // of tokens_, the last so many
  int32_t num_computed_ = 0;
  int32_t max_computed_ = 0;  // the most that num_computed_ has been
  SequenceState state_ = SequenceState::kNew;
  bool was_preempted_ = false;
  int32_t num_runs_ = 0;
  std::optional<int32_t> slot_;
  BlockTable blocks_;
  // Until its first chunk is computed: the last of the blocks that it began with.
  std::optional<int32_t> tails_from_block_;
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_SEQUENCE_H_
