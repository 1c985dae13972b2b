#ifndef DDL_MODEL_TOKENIZER_ADDED_TOKENS_H_
#define DDL_MODEL_TOKENIZER_ADDED_TOKENS_H_

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/tokenizer_files.h"
#include "model/tokenizer/unicode_pattern.h"

namespace ddl {

// Finds added tokens in texts, as Hugging Face's tokenizers do: those with `normalized` false
// first, then the others in what is left; each time the leftmost, of these the longest. Immutable:
// threads may share one.
class AddedTokens {
 public:
  // The bytes text[start, end): an added token, or text between two of them.
  struct Segment {
    std::optional<TokenId> id;
    size_t start = 0;
    size_t end = 0;
  };

  static absl::StatusOr<AddedTokens> Create(const std::vector<AddedToken>& tokens);

  // The segments of `text`, valid UTF-8, in order and without gaps. None is empty.
  absl::StatusOr<std::vector<Segment>> Split(std::string_view text) const;

 private:
  struct Group {
    absl::flat_hash_map<std::string, AddedToken> by_content;
    // Lengths of the contents that begin with a byte, the longest first.
    std::array<std::vector<size_t>, 256> lengths;
  };

  AddedTokens(UnicodePattern white_space, UnicodePattern word_character);

  static void Add(const AddedToken& token, Group& group);
  // The longest token that begins at `position`, or null.
  static const AddedToken* Find(const Group& group, std::string_view text, size_t position);
  // Replaces the text of `segment` by its segments.
  absl::Status SplitSegment(const Group& group, std::string_view text, const Segment& segment,
                            std::vector<Segment>& segments) const;
  absl::StatusOr<bool> StandsAlone(std::string_view text, size_t start, size_t end) const;
  // Where the white space that ends at `position` begins, at `floor` or after it.
  absl::StatusOr<size_t> WhiteSpaceBefore(std::string_view text, size_t floor,
                                          size_t position) const;

  UnicodePattern white_space_;
  UnicodePattern word_character_;
  Group verbatim_;  // normalized is false
  Group normalized_;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_ADDED_TOKENS_H_
