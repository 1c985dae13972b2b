#ifndef DDL_MODEL_TOKENIZER_POST_PROCESSOR_H_
#define DDL_MODEL_TOKENIZER_POST_PROCESSOR_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "model/token.h"
#include "model/tokenizer/aligned_text.h"

namespace ddl {

// White space, in characters, at the ends of a token as it is written. The byte alphabet's space
// counts.
struct TokenEnds {
  uint32_t leading = 0;
  uint32_t trailing = 0;

  static TokenEnds Of(std::string_view written);
};

// A token of a text, as post-processors change it.
struct EncodedToken {
  TokenId id = 0;
  TextSpan span;
  TokenEnds ends;
};

// The post-processors of tokenizer.json, one after the other. Immutable: threads may share one.
class PostProcessor {
 public:
  // Leaves white space at a token's ends out of its span.
  struct TrimOffsets {
    // The space before the first token was put in, so it is in no span.
    bool add_prefix_space = false;
  };
  // Puts special tokens around the text's, with empty spans at 0.
  struct Surround {
    std::vector<TokenId> before;
    std::vector<TokenId> after;
  };
  using Step = std::variant<TrimOffsets, Surround>;

  PostProcessor() = default;
  explicit PostProcessor(std::vector<Step> steps) : steps_(std::move(steps)) {}

  // All that the steps put around a text.
  Surround SpecialTokens() const;

  // `text` is what the spans are of.
  void Run(std::string_view text, bool add_special_tokens, std::vector<EncodedToken>& tokens) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_POST_PROCESSOR_H_
