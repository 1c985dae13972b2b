#ifndef DDL_MODEL_TOKENIZER_UNICODE_PATTERN_H_
#define DDL_MODEL_TOKENIZER_UNICODE_PATTERN_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

// PCRE2's own types, as its header declares them.
extern "C" {
struct pcre2_real_code_8;
struct pcre2_real_match_context_8;
struct pcre2_real_match_data_8;
}

namespace ddl {

// A compiled regular expression over Unicode 16 text. It matches where it is asked to, it does not
// search. Immutable: threads may share one.
class UnicodePattern {
 public:
  // GPT-2's word: what byte pair encoding never merges across. Any text is a sequence of them.
  static absl::StatusOr<UnicodePattern> Gpt2Word();
  // A run of White_Space, at least one.
  static absl::StatusOr<UnicodePattern> WhiteSpace();
  // One character that words are made of, as Rust's and UTS 18's \w.
  static absl::StatusOr<UnicodePattern> WordCharacter();

 private:
  friend class PatternMatcher;
  struct CodeDeleter {
    void operator()(pcre2_real_code_8* code) const;
  };
  struct ContextDeleter {
    void operator()(pcre2_real_match_context_8* context) const;
  };

  static absl::StatusOr<UnicodePattern> Compile(const std::string& pattern);

  std::unique_ptr<pcre2_real_code_8, CodeDeleter> code_;
  std::unique_ptr<pcre2_real_match_context_8, ContextDeleter> context_;
};

// Working memory for one pattern, which must outlive it. One thread at a time.
class PatternMatcher {
 public:
  explicit PatternMatcher(const UnicodePattern& pattern);

  // Bytes matched at `position` of `text`, 0 where the pattern does not match. `text` must be
  // valid UTF-8 and `position` a character's first byte. RESOURCE_EXHAUSTED when PCRE2 gives up.
  absl::StatusOr<size_t> MatchLength(std::string_view text, size_t position);

 private:
  struct DataDeleter {
    void operator()(pcre2_real_match_data_8* data) const;
  };

  const UnicodePattern& pattern_;
  std::unique_ptr<pcre2_real_match_data_8, DataDeleter> data_;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_UNICODE_PATTERN_H_
