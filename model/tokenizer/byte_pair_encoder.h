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
#include "absl/status/status.h"
#include "model/token.h"
#include "model/tokenizer/byte_alphabet.h"

namespace ddl {

// Two tokens that may become one.
struct MergeRule {
  TokenId left = 0;
  TokenId right = 0;
  TokenId merged = 0;
  int32_t rank = 0;  // the lowest goes first; of rules for the same pair the last one holds
};

// A vocabulary and its merges, as written: byte-level ones in the byte alphabet.
struct BytePairVocabulary {
  struct Entry {
    TokenId id = 0;
    std::string text;
  };
  std::vector<Entry> entries;
  std::vector<MergeRule> merges;
  // What takes the place of a character without a token. Without one such characters are left out;
  // one that is not in the vocabulary is an error where it is needed.
  std::optional<std::string> unknown;
  bool fuse_unknown = false;   // one `unknown` for characters without tokens in a row
  bool byte_fallback = false;  // before `unknown`: the tokens <0x00> to <0xFF>, if all are there
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
  // What is written before every character but a word's first, and after its last.
  std::string continuing_prefix;
  std::string end_suffix;
};

// The byte that a token like "<0x0A>" stands for where byte_fallback is used.
std::optional<uint8_t> FallbackByte(std::string_view token);

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

  // Appends the pieces of `word`, valid UTF-8 of at most 2^31 - 1 bytes, in O(n log n). Their
  // lengths add up to its length, unless characters are left out. INVALID_ARGUMENT, naming the
  // character, for one that needs an unknown token that is not in the vocabulary; `pieces` are then
  // not to be used.
  absl::Status Encode(std::string_view word, Workspace& workspace,
                      std::vector<Piece>& pieces) const;

 private:
  struct Merge {
    int32_t rank = 0;
    TokenId merged = 0;
  };

  // The token of one character of a word.
  std::optional<TokenId> FindCharacter(std::string_view word, size_t start, size_t end) const;
  // Adds a character, with what is written around it, by its bytes; false if a byte has no token.
  bool AddBytes(std::string_view word, size_t start, size_t end, Workspace& workspace) const;
  absl::Status StartFromCharacters(std::string_view word, Workspace& workspace) const;
  // Puts the merge of the symbol at `left` with its right neighbour, if there is one, in the queue.
  void Enqueue(int32_t left, Workspace& workspace) const;
  void MergeAll(Workspace& workspace) const;

  std::optional<std::string> unknown_;
  std::optional<TokenId> unknown_id_;  // none: not in the vocabulary
  bool fuse_unknown_ = false;
  std::string continuing_prefix_;
  std::string end_suffix_;
  // Tokens of single characters: those that byte-level words are made of, then all.
  std::array<TokenId, kByteAlphabetEnd> low_characters_;
  absl::flat_hash_map<std::string, TokenId> characters_;
  std::optional<std::array<TokenId, 256>> byte_tokens_;  // -1: none
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by both ids, the left one in the high half
  // Words that are one token: nearly all of ordinary text, so most words need no merging.
  absl::flat_hash_map<std::string, TokenId> whole_words_;
};

class BytePairEncoder::Workspace {
 private:
  friend class BytePairEncoder;

  void Add(TokenId id, uint32_t length) {
    const auto index = static_cast<int32_t>(symbols_.size());
    symbols_.push_back({id, length, index - 1, index + 1});
  }

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
