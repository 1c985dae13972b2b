#ifndef DDL_MODEL_TOKENIZER_TOKENIZER_H_
#define DDL_MODEL_TOKENIZER_TOKENIZER_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/token.h"

namespace ddl {

// GPT-2's byte-level BPE: text to token ids and back, with the added and special tokens of a
// Hugging Face `tokenizer.json`. Immutable after Load, so any number of threads may share one.
class Tokenizer {
 public:
  struct Token {
    TokenId id = 0;
    // The bytes text[start, end) that the token stands for. Empty for tokens that
    // add_special_tokens put in: at the start those before the text, at the end those after it.
    uint32_t start = 0;
    uint32_t end = 0;
  };

  // Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`, from a checkpoint's folder, and
  // `tokenizer_config.json` where there is one. NOT_FOUND when the folder has no tokenizer (such a
  // checkpoint is served with token ids only); INVALID_ARGUMENT, naming the file and what is wrong
  // in it, for anything that is not byte-level BPE or is malformed.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(const std::filesystem::path& folder);
  ~Tokenizer();

  // INVALID_ARGUMENT, with the byte offset, when `text` is not valid UTF-8 or has a byte that the
  // vocabulary has no token for (GPT-2's has all). Special tokens written out in the text
  // ("<|endoftext|>") become their ids, as in Hugging Face. `add_special_tokens` runs the
  // post-processor of tokenizer.json, where it has one (GPT-2 has none).
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool add_special_tokens) const;
  absl::StatusOr<std::vector<Token>> EncodeWithOffsets(std::string_view text,
                                                       bool add_special_tokens) const;

  // Whole text of `ids`; bytes that are not UTF-8 become U+FFFD, one per maximal ill-formed
  // subpart, as Python's errors="replace" has it. Ids at or past vocab_size() (padding rows of
  // the embedding) have no bytes.
  std::string Decode(absl::Span<const TokenId> ids, bool skip_special_tokens) const;

  // The exact bytes of one token: may be part of a UTF-8 character. Empty past vocab_size().
  // Valid as long as the tokenizer.
  std::string_view TokenBytes(TokenId id) const;
  bool IsSpecial(TokenId id) const;

  // One past the largest id that stands for something.
  TokenId vocab_size() const;
  // The end-of-text token: `eos_token` of tokenizer_config.json, else "<|endoftext|>" where the
  // vocabulary has it. It is special, whether or not the files list it among the added tokens.
  std::optional<TokenId> eos_token_id() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

// Turns tokens into text as they come, without ever splitting a UTF-8 character: what Append
// and Finish return, concatenated, is what Tokenizer::Decode gives for the same tokens.
// One thread at a time; the tokenizer must outlive it.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);

  // Text that is complete now. Bytes of an unfinished character are held back.
  std::string Append(TokenId id);
  // What was held back, as one U+FFFD.
  std::string Finish();

  // The bytes held back: the beginning of one character, at most 3.
  std::string_view pending() const { return pending_; }

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_tokens_;
  std::string pending_;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKENIZER_H_
