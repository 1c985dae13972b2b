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
#include "model/tokenizer/token_decoder.h"

namespace ddl {

struct TokenizerSpec;

// Byte pair encoding, as Hugging Face's `tokenizers` computes it from a `tokenizer.json`: text to
// token ids and back. Immutable after Load, so any number of threads may share one.
class Tokenizer {
 public:
  struct Token {
    TokenId id = 0;
    // The bytes text[start, end) that the token stands for. Where a normalizer changed the text,
    // the bytes that its characters were made from; without the white space at its ends, where
    // tokenizer.json says so (trim_offsets). Both 0 for tokens that add_special_tokens put in.
    uint32_t start = 0;
    uint32_t end = 0;
  };
  struct EncodeOptions {
    // Runs what the post-processor puts around a text, where there is one (GPT-2 has none).
    bool add_special_tokens = false;
    // Special tokens written out in the text ("<|endoftext|>") become their ids, as in Hugging
    // Face. Without, they are text like any other.
    bool parse_special_tokens = true;
  };

  // Reads the tokenizer of a checkpoint's folder: the first of `tokenizer.json`, `vocab.json` with
  // `merges.txt`, `encoder.json` with `vocab.bpe`, one file that ends in .tiktoken, and a
  // `tokenizer.model` that is one; and the files beside it (companion_files.h). NOT_FOUND when the
  // folder has no tokenizer (such a checkpoint is served with token ids only); INVALID_ARGUMENT,
  // naming the file, the member and what is wrong with it, for anything that is malformed or not
  // supported.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(const std::filesystem::path& folder);
  // From what the files say. INVALID_ARGUMENT or RESOURCE_EXHAUSTED when a regular expression fails
  // on one of the tokens.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(TokenizerSpec spec);
  ~Tokenizer();

  // INVALID_ARGUMENT, with the byte offset, when `text` is not valid UTF-8, or when it has a
  // character without a token and the unknown token that takes its place is not in the vocabulary.
  // RESOURCE_EXHAUSTED when a regular expression of tokenizer.json takes too many steps.
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, EncodeOptions options) const;
  absl::StatusOr<std::vector<Token>> EncodeWithOffsets(std::string_view text,
                                                       EncodeOptions options) const;

  // Whole text of `ids`, as tokenizer.json's decoder makes it. For byte-level tokenizers, bytes
  // that are not UTF-8 become U+FFFD, one per maximal ill-formed subpart, as Python's
  // errors="replace" has it. Ids at or past vocab_size() (padding rows of the embedding) are left
  // out.
  std::string Decode(absl::Span<const TokenId> ids, bool skip_special_tokens) const;

  // The bytes that a token stands for by itself: may be part of a UTF-8 character. Empty past
  // vocab_size(). Valid as long as the tokenizer.
  std::string_view TokenBytes(TokenId id) const;
  bool IsSpecial(TokenId id) const;

  // One past the largest id that stands for something.
  TokenId vocab_size() const;
  // The tokenizer's end-of-text token: `eos_token` of tokenizer_config.json or
  // special_tokens_map.json, else "<|endoftext|>" where the vocabulary has it. It is special,
  // whether or not the files list it among the added tokens. See eos_tokens.h for what ends
  // completions.
  std::optional<TokenId> eos_token_id() const;
  // The file, or files, that the vocabulary is from: "tokenizer.json".
  const std::string& source() const;
  // The file that names eos_token_id: source() where only the vocabulary has it.
  const std::string& eos_source() const;
  // What add_special_tokens puts before a text, and after it.
  const std::vector<TokenId>& prefix_token_ids() const;
  const std::vector<TokenId>& suffix_token_ids() const;

 private:
  friend class StreamDecoder;
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

  // Text that nothing that follows can change. What could change is held back: bytes of an
  // unfinished character, a whole run of tokens like <0x0A> where byte_fallback is used, and what
  // decoders would strip at the end of the text.
  std::string Append(TokenId id);
  // What was held back.
  std::string Finish();

  // Bytes held back.
  std::string_view pending() const { return stream_.pending(); }

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_tokens_;
  TokenDecoder::Stream stream_;
};

}  // namespace ddl

#endif  // DDL_MODEL_TOKENIZER_TOKENIZER_H_
