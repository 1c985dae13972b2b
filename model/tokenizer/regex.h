#ifndef DDL_MODEL_TOKENIZER_REGEX_H_
#define DDL_MODEL_TOKENIZER_REGEX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
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

// A compiled regular expression over Unicode text. Immutable: threads may share one.
class Regex {
 public:
  // As tokenizer.json writes them, see OnigurumaToPcre2. INVALID_ARGUMENT, saying where and why,
  // for a pattern that is malformed or not supported.
  static absl::StatusOr<Regex> FromOniguruma(std::string_view pattern);
  // Matches `text` and nothing else.
  static absl::StatusOr<Regex> FromText(std::string_view text);
  // A run of White_Space, at least one.
  static absl::StatusOr<Regex> WhiteSpace();
  // One character that words are made of, as Rust's and UTS 18's \w.
  static absl::StatusOr<Regex> WordCharacter();
  // What the Whitespace pre-tokenizer keeps, in Rust's syntax: \w+|[^\w\s]+
  static absl::StatusOr<Regex> WordsAndSymbols();

 private:
  friend class RegexMatcher;
  struct CodeDeleter {
    void operator()(pcre2_real_code_8* code) const;
  };
  struct ContextDeleter {
    void operator()(pcre2_real_match_context_8* context) const;
  };

  static absl::StatusOr<Regex> Compile(const std::string& pattern);

  std::unique_ptr<pcre2_real_code_8, CodeDeleter> code_;
  std::unique_ptr<pcre2_real_match_context_8, ContextDeleter> context_;
};

// Working memory for one pattern, which must outlive it. One thread at a time.
class RegexMatcher {
 public:
  struct Span {
    size_t start = 0;
    size_t end = 0;
  };

  explicit RegexMatcher(const Regex& regex);

  // The first match in `text` that begins at `position` or after it; may be empty. `text` must be
  // valid UTF-8 and `position` a character's first byte, or the end. RESOURCE_EXHAUSTED when a
  // match takes more steps than any sensible pattern needs, or all that this matcher was asked
  // for more than 5 seconds of the processor: some patterns are quadratic in some texts.
  absl::StatusOr<std::optional<Span>> Find(std::string_view text, size_t position);
  // The same, but beginning at `position` and nowhere else: its length, 0 when there is none.
  absl::StatusOr<size_t> MatchLength(std::string_view text, size_t position);

 private:
  struct DataDeleter {
    void operator()(pcre2_real_match_data_8* data) const;
  };

  // PCRE2's result for matches that begin in the bytes [position, last] of `text`.
  int Match(std::string_view text, size_t position, size_t last);
  bool TookTooLong();

  const Regex& regex_;
  std::unique_ptr<pcre2_real_match_data_8, DataDeleter> data_;
  std::unique_ptr<pcre2_real_match_context_8, Regex::ContextDeleter> context_;
  int64_t started_ = 0;  // of the thread's time on the processor, nanoseconds
  uint32_t finds_ = 0;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_REGEX_H_
