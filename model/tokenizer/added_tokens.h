#ifndef DDL_MODEL_TOKENIZER_ADDED_TOKENS_H_
#define DDL_MODEL_TOKENIZER_ADDED_TOKENS_H_

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/tokenizer_spec.h"

namespace ddl {

// Finds added tokens in texts, as Hugging Face's tokenizers do: those with `normalized` false in
// the text as it is, then the others in what is left, after the normalizer; each time the leftmost,
// of these the longest. Immutable: threads may share one.
class AddedTokens {
 public:
  // The bytes text[start, end): an added token, or text between two of them.
  struct Segment {
    std::optional<TokenId> id;
    size_t start = 0;
    size_t end = 0;
  };

  // `normalizer` is for the contents of tokens with `normalized` true.
  static absl::StatusOr<AddedTokens> Create(const absl::btree_map<TokenId, AddedToken>& tokens,
                                            const Normalizer& normalizer);

  // The segments of `text`, valid UTF-8, in order and without gaps. None is empty. Where a token
  // took the white space after it along, the next one may begin inside of it. Without
  // `parse_special` tokens that are special are text like any other.
  absl::StatusOr<std::vector<Segment>> SplitOriginal(std::string_view text,
                                                     bool parse_special) const;
  absl::StatusOr<std::vector<Segment>> SplitNormalized(std::string_view text,
                                                       bool parse_special) const;

 private:
  struct Group {
    absl::flat_hash_map<std::string, AddedToken> by_content;
    // Lengths of the contents that begin with a byte, the longest first.
    std::array<std::vector<size_t>, 256> lengths;
  };

  AddedTokens(Regex white_space, Regex word_character);

  static void Add(const AddedToken& token, const std::string& content, Group& group);
  // The longest token that begins at `position`, and its length there; null: none.
  static const AddedToken* Find(const Group& group, std::string_view text, size_t position,
                                size_t& length);
  absl::StatusOr<std::vector<Segment>> Split(const Group& group, std::string_view text,
                                             bool parse_special) const;
  absl::StatusOr<bool> StandsAlone(std::string_view text, size_t start, size_t end) const;

  Regex white_space_;
  Regex word_character_;
  Group original_;  // normalized is false
  Group normalized_;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_ADDED_TOKENS_H_
