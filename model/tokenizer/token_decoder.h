#ifndef DDL_MODEL_TOKENIZER_TOKEN_DECODER_H_
#define DDL_MODEL_TOKENIZER_TOKEN_DECODER_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer/regex.h"

namespace ddl {

// The decoders of tokenizer.json: they turn tokens, as the vocabulary writes them, into text. They
// run in three parts: steps that change every token by itself, the way tokens are joined, and steps
// that change the joined text. Immutable: threads may share one.
class TokenDecoder {
 public:
  struct Replace {
    Regex pattern;
    std::string content;
  };
  // Drops up to `start` and `stop` characters `content` at the ends.
  struct Strip {
    char32_t content = 0;
    size_t start = 0;
    size_t stop = 0;
  };
  using TokenStep = std::variant<Replace, Strip>;

  // One after the other.
  struct Concatenated {};
  // With a space between: what a tokenizer.json without a decoder means.
  struct SpaceSeparated {};
  // Tokens are bytes, in the byte alphabet. What is not UTF-8 becomes U+FFFD, one per maximal
  // ill-formed subpart, as Python's errors="replace" has it.
  struct ByteLevel {};
  // Tokens like <0x0A> are bytes. When those in a row are not UTF-8, each becomes U+FFFD.
  struct ByteFallback {};
  // `replacement` is a space; in the first token it is nothing, unless `keeps_first`.
  struct Metaspace {
    std::string replacement;
    bool keeps_first = false;
  };
  // `suffix` is a space; in the last token it is nothing.
  struct WordSuffix {
    std::string suffix;
  };
  using Join =
      std::variant<Concatenated, SpaceSeparated, ByteLevel, ByteFallback, Metaspace, WordSuffix>;

  TokenDecoder() = default;
  TokenDecoder(std::vector<TokenStep> token_steps, Join join, std::vector<Strip> text_steps)
      : token_steps_(std::move(token_steps)),
        join_(std::move(join)),
        text_steps_(std::move(text_steps)) {}

  // A token ready to be joined, with what it stands for by itself.
  struct Prepared {
    std::string text;   // after the steps for tokens
    std::string bytes;  // may be part of a UTF-8 character
    bool is_byte = false;
  };
  // RESOURCE_EXHAUSTED when a regular expression gives up.
  absl::StatusOr<Prepared> Prepare(std::string_view token) const;

  // The text of tokens that come one by one.
  class Stream;

 private:
  std::vector<TokenStep> token_steps_;
  Join join_;
  std::vector<Strip> text_steps_;
};

// One thread at a time; the decoder must outlive it.
class TokenDecoder::Stream {
 public:
  explicit Stream(const TokenDecoder& decoder)
      : decoder_(&decoder), strips_(decoder.text_steps_.size()) {}

  // Text that nothing that follows can change: with what Finish returns, the whole text.
  std::string Append(const Prepared& token);
  std::string Finish();

  // What is held back.
  std::string_view pending() const { return pending_; }

 private:
  struct StripState {
    size_t stripped = 0;  // characters at the start
    bool started = false;
    std::string held;  // characters at the end that may be stripped
  };

  std::string Joined(const Prepared& token);
  std::string JoinedEnd();
  // The text of the bytes of fallback tokens, which end here.
  std::string TakeFallbackBytes();
  std::string Stripped(std::string text, bool is_end);

  const TokenDecoder* decoder_;
  bool is_first_ = true;
  std::string pending_;  // bytes of an unfinished character, of fallback tokens, or a last token
  std::vector<StripState> strips_;  // by text step
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKEN_DECODER_H_
