#ifndef DDL_MODEL_TOKENIZER_NORMALIZER_H_
#define DDL_MODEL_TOKENIZER_NORMALIZER_H_

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "model/tokenizer/aligned_text.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/unicode_form.h"

namespace ddl {

// The normalizers of tokenizer.json, one after the other. Immutable: threads may share one.
class Normalizer {
 public:
  struct Lowercase {};
  struct StripAccents {};  // drops combining marks
  struct ByteLevel {};     // writes each byte as a character of the byte alphabet
  struct Strip {           // white space at the ends
    bool left = true;
    bool right = true;
  };
  struct Prepend {
    std::string text;
  };
  struct Replace {
    Regex pattern;
    std::string content;
  };
  using Step =
      std::variant<UnicodeForm, Lowercase, StripAccents, ByteLevel, Strip, Prepend, Replace>;

  Normalizer() = default;
  explicit Normalizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }
  // Changes `text`. RESOURCE_EXHAUSTED when a regular expression gives up.
  absl::Status Run(AlignedText& text) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_NORMALIZER_H_
