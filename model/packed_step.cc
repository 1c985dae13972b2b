#include "model/packed_step.h"

#include <algorithm>

#include "base/check.h"

namespace ddl {
namespace {

int64_t LongestBlockTable(absl::Span<const SequenceChunk> chunks) {
  size_t longest = 0;
  for (const SequenceChunk& chunk : chunks) longest = std::max(longest, chunk.block_table.size());
  return static_cast<int64_t>(longest);
}

// The slot whose tails the chunk goes on from.
int32_t TailSource(const SequenceChunk& chunk, const PackingOptions& options) {
  if (!chunk.tails_from_block.has_value()) return chunk.slot;
  const int32_t block = *chunk.tails_from_block;
  DDL_CHECK(chunk.start > 0 && chunk.start % options.kv_block_size == 0,
            "tails_from_block where no block ends");
  DDL_CHECK(block >= 0 && block < options.kv_num_blocks, "tails_from_block is no block");
  return options.max_sequences + block;
}

}  // namespace

PackedStep::PackedStep(absl::Span<const SequenceChunk> chunks, const PackingOptions& options)
    : batch_(LongestBlockTable(chunks), options.has_tails) {
  for (const SequenceChunk& chunk : chunks) {
    const auto length = static_cast<int32_t>(chunk.tokens.size());
    DDL_CHECK(chunk.start >= 0 && chunk.start < length, "a chunk without positions");
    DDL_CHECK(length <= options.max_context_length, "a sequence longer than max_context_length");
    DDL_CHECK(static_cast<int64_t>(chunk.block_table.size()) * options.kv_block_size >= length,
              "a block table shorter than its sequence");
    batch_.AddSequence(chunk.slot, TailSource(chunk, options), chunk.block_table);
    for (int32_t position = chunk.start; position < length; ++position) {
      const bool ends_block = position % options.kv_block_size == options.kv_block_size - 1;
      const int32_t block = chunk.block_table[position / options.kv_block_size];
      batch_.AddRow(position, ends_block ? options.max_sequences + block : -1);
      for (int64_t tap = options.input_taps - 1; tap >= 0; --tap) {
        ids_.push_back(position >= tap ? chunk.tokens[position - tap] : -1);
      }
    }
    if (chunk.last_token_from.has_value()) {
      // The last tap of the last row: no other position sees it.
      pending_.push_back(static_cast<int32_t>(ids_.size()) - 1);
      pending_from_.push_back(*chunk.last_token_from);
    }
  }
}

}  // namespace ddl
