#ifndef DDL_MODEL_TOKENIZER_PRE_TOKENIZER_H_
#define DDL_MODEL_TOKENIZER_PRE_TOKENIZER_H_

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "model/tokenizer/aligned_text.h"
#include "model/tokenizer/regex.h"

namespace ddl {

// Text and the words that it is split into: bytes [begin, end) each, in order, none empty.
struct SplitText {
  struct Word {
    size_t begin = 0;
    size_t end = 0;
  };

  explicit SplitText(AlignedText whole);

  AlignedText text;
  std::vector<Word> words;
};

// What becomes of the matches that text is split at.
enum class SplitBehavior {
  kRemoved,
  kIsolated,            // words of their own
  kMergedWithPrevious,  // the end of the word before them
  kMergedWithNext,      // the beginning of the word after them
  kContiguous,          // one word for matches in a row
};

// The pre-tokenizers of tokenizer.json, one after the other: they split text into the words that
// byte pair encoding never merges across. Immutable: threads may share one.
class PreTokenizer {
 public:
  struct Split {
    Regex pattern;
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;  // splits at what does not match
  };
  struct ByteLevel {
    bool add_prefix_space = false;
    std::optional<Regex> pattern;  // GPT-2's, unless use_regex is false
  };
  struct Metaspace {
    enum class Prepend { kAlways, kFirst, kNever };
    std::string replacement;  // one character
    Prepend prepend = Prepend::kAlways;
    bool split = true;
  };
  struct Digits {
    bool individual = false;
  };
  struct Punctuation {
    SplitBehavior behavior = SplitBehavior::kIsolated;
  };
  struct WhitespaceSplit {};
  struct CharDelimiterSplit {
    char32_t delimiter = 0;
  };
  using Step = std::variant<Split, ByteLevel, Metaspace, Digits, Punctuation, WhitespaceSplit,
                            CharDelimiterSplit>;

  // What GPT-2 calls a word.
  static const char kGpt2Pattern[];

  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  // Whether Run needs to know where its text comes from, even if nobody asks for offsets.
  bool needs_origins() const;
  // RESOURCE_EXHAUSTED when a regular expression gives up.
  absl::Status Run(SplitText& text) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_PRE_TOKENIZER_H_
