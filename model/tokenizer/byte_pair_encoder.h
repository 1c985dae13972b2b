#ifndef DDL_MODEL_TOKENIZER_BYTE_PAIR_ENCODER_H_
#define DDL_MODEL_TOKENIZER_BYTE_PAIR_ENCODER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "model/token.h"

namespace ddl {

// Two tokens that may become one. Its rank is its place in the list of merges.
struct MergeRule {
  TokenId left = 0;
  TokenId right = 0;
  TokenId merged = 0;
};

// A byte-level vocabulary and its merges.
struct BytePairVocabulary {
  struct Entry {
    TokenId id = 0;
    std::string bytes;
  };
  std::vector<Entry> entries;  // of the tokens that merging can make
  // The token of each single byte. Where a byte has none, `unknown` takes its place.
  std::array<std::optional<TokenId>, 256> byte_tokens;
  std::optional<TokenId> unknown;
  bool fuse_unknown = false;  // one `unknown` for a run of bytes without tokens
  std::vector<MergeRule> merges;
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
};

// Byte pair encoding of words: again and again the neighbours whose merge has the lowest rank, the
// leftmost of equals, become one token. Immutable: threads may share one.
class BytePairEncoder {
 public:
  struct Piece {
    TokenId id = 0;
    uint32_t length = 0;  // bytes
  };
  // Memory that calls reuse. One thread at a time.
  class Workspace;

  explicit BytePairEncoder(const BytePairVocabulary& vocabulary);

  // Appends the pieces of `word`, of at most 2^31 - 1 bytes, in O(n log n). Returns nothing, or
  // the offset of a byte for which the vocabulary has no token; `pieces` are then not to be used.
  std::optional<size_t> Encode(std::string_view word, Workspace& workspace,
                               std::vector<Piece>& pieces) const;

 private:
  struct Merge {
    int32_t rank = 0;
    TokenId merged = 0;
  };

  std::optional<size_t> StartFromBytes(std::string_view word, Workspace& workspace) const;
  // Puts the merge of the symbol at `left` with its right neighbour, if there is one, in the queue.
  void Enqueue(int32_t left, Workspace& workspace) const;
  void MergeAll(Workspace& workspace) const;

  std::array<std::optional<TokenId>, 256> byte_tokens_;
  std::optional<TokenId> unknown_;
  bool fuse_unknown_ = false;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by both ids, the left one in the high half
  // Words that are one token: nearly all of ordinary text, so most words need no merging.
  absl::flat_hash_map<std::string, TokenId> whole_words_;
};

class BytePairEncoder::Workspace {
 private:
  friend class BytePairEncoder;

  // The word as a linked list of tokens. A merge extends the left one and unlinks the right one.
  struct Symbol {
    TokenId id = 0;
    uint32_t length = 0;  // bytes; 0: unlinked
    int32_t previous = -1;
    int32_t next = -1;
  };
  // A merge that was possible when it was queued: still is while both tokens are there.
  struct Candidate {
    int32_t rank = 0;
    int32_t position = 0;
    TokenId left = 0;
    TokenId right = 0;
    TokenId merged = 0;
  };

  std::vector<Symbol> symbols_;
  std::vector<Candidate> queue_;  // a heap, lowest rank and then leftmost first
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_BYTE_PAIR_ENCODER_H_
