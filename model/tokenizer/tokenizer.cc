#include "model/tokenizer/tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/aligned_text.h"
#include "model/tokenizer/byte_pair_encoder.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/post_processor.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/tokenizer_files.h"
#include "model/tokenizer/tokenizer_spec.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

// What one id stands for.
struct TokenInfo {
  bool exists = false;
  bool special = false;
  TokenDecoder::Prepared prepared;
  TokenEnds ends;
};

absl::StatusOr<std::vector<TokenInfo>> MakeTable(const TokenizerSpec& spec) {
  absl::flat_hash_set<std::string> special;
  for (const auto& [id, token] : spec.added_tokens) {
    if (token.special) special.insert(token.content);
  }
  std::vector<TokenInfo> table;
  for (const auto& [id, text] : spec.texts) {
    if (static_cast<size_t>(id) >= table.size()) table.resize(id + 1);
    auto prepared = spec.decoder.Prepare(text);
    if (!prepared.ok()) return prepared.status();
    table[id] = {true, special.contains(text), *std::move(prepared), TokenEnds::Of(text)};
  }
  return table;
}

}  // namespace

struct Tokenizer::Impl {
  // Encodes the segments of one text, in order.
  class Encoding;

  std::string source;
  AddedTokens added_tokens;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BytePairEncoder encoder;
  PostProcessor post_processor;
  TokenDecoder decoder;
  std::vector<TokenInfo> tokens;  // by id
  std::optional<TokenId> eos_token_id;
  std::string eos_source;
  PostProcessor::Surround special_tokens;

  const TokenInfo* Find(TokenId id) const {
    const bool exists = id >= 0 && static_cast<size_t>(id) < tokens.size() && tokens[id].exists;
    return exists ? &tokens[id] : nullptr;
  }

  absl::StatusOr<std::vector<EncodedToken>> Encode(std::string_view text, EncodeOptions options,
                                                   bool with_spans) const;
};

class Tokenizer::Impl::Encoding {
 public:
  Encoding(const Impl& impl, bool parse_special, bool with_spans)
      : impl_(impl), parse_special_(parse_special), with_spans_(with_spans) {}

  absl::Status AddText(std::string_view text) {
    const auto segments = impl_.added_tokens.SplitOriginal(text, parse_special_);
    if (!segments.ok()) return segments.status();
    for (const AddedTokens::Segment& segment : *segments) {
      const std::string_view inner = text.substr(segment.start, segment.end - segment.start);
      if (segment.id) {
        AddToken(*segment.id,
                 {static_cast<uint32_t>(segment.start), static_cast<uint32_t>(segment.end)}, inner);
      } else if (auto status = AddOriginal(inner, segment.start); !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }

  std::vector<EncodedToken> Take() && { return std::move(tokens_); }

 private:
  // An added token, written as `text` with the white space that it takes along.
  void AddToken(TokenId id, TextSpan span, std::string_view text) {
    tokens_.push_back({id, span, with_spans_ ? TokenEnds::Of(text) : TokenEnds()});
  }

  // `text` has no added tokens but those looked for after the normalizer, and begins at byte
  // `offset` of the whole text.
  absl::Status AddOriginal(std::string_view text, size_t offset) {
    AlignedText normalized(text, offset, with_spans_ || impl_.pre_tokenizer.needs_origins());
    if (auto status = impl_.normalizer.Run(normalized); !status.ok()) return status;
    const auto segments = impl_.added_tokens.SplitNormalized(normalized.text(), parse_special_);
    if (!segments.ok()) return segments.status();
    if (segments->size() == 1 && !segments->front().id) return AddWords(std::move(normalized));
    for (const AddedTokens::Segment& segment : *segments) {
      if (segment.id) {
        AddToken(
            *segment.id, with_spans_ ? normalized.Origin(segment.start, segment.end) : TextSpan(),
            std::string_view(normalized.text()).substr(segment.start, segment.end - segment.start));
        continue;
      }
      AlignedText inner(normalized.tracked());
      inner.AppendFrom(normalized, segment.start, segment.end);
      if (auto status = AddWords(std::move(inner)); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status AddWords(AlignedText normalized) {
    SplitText split(std::move(normalized));
    if (auto status = impl_.pre_tokenizer.Run(split); !status.ok()) return status;
    const std::string_view text = split.text.text();
    for (const SplitText::Word& word : split.words) {
      pieces_.clear();
      auto status =
          impl_.encoder.Encode(text.substr(word.begin, word.end - word.begin), workspace_, pieces_);
      if (!status.ok()) return status;
      size_t begin = word.begin;
      for (const BytePairEncoder::Piece& piece : pieces_) {
        EncodedToken token{piece.id, {}, {}};
        if (with_spans_) {
          // Fallback tokens for what is written around characters may reach past the word's end.
          const size_t end = std::min<size_t>(begin + piece.length, word.end);
          if (begin < end) token.span = split.text.Origin(begin, end);
          token.ends = impl_.tokens[piece.id].ends;
          begin = end;
        }
        tokens_.push_back(token);
      }
    }
    return absl::OkStatus();
  }

  const Impl& impl_;
  const bool parse_special_;
  const bool with_spans_;
  BytePairEncoder::Workspace workspace_;
  std::vector<BytePairEncoder::Piece> pieces_;
  std::vector<EncodedToken> tokens_;
};

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Load(
    const std::filesystem::path& folder) {
  absl::StatusOr<TokenizerSpec> spec = ReadTokenizerFiles(folder);
  if (!spec.ok()) return spec.status();
  return Create(*std::move(spec));
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Create(TokenizerSpec spec) {
  absl::StatusOr<AddedTokens> added_tokens =
      AddedTokens::Create(spec.added_tokens, spec.normalizer);
  if (!added_tokens.ok()) return added_tokens.status();
  absl::StatusOr<std::vector<TokenInfo>> tokens = MakeTable(spec);
  if (!tokens.ok()) return tokens.status();
  PostProcessor::Surround special_tokens = spec.post_processor.SpecialTokens();
  auto impl = std::make_unique<const Impl>(Impl{
      .source = std::move(spec.source),
      .added_tokens = *std::move(added_tokens),
      .normalizer = std::move(spec.normalizer),
      .pre_tokenizer = std::move(spec.pre_tokenizer),
      .encoder = BytePairEncoder(spec.vocabulary),
      .post_processor = std::move(spec.post_processor),
      .decoder = std::move(spec.decoder),
      .tokens = *std::move(tokens),
      .eos_token_id = spec.eos_token_id,
      .eos_source = std::move(spec.eos_source),
      .special_tokens = std::move(special_tokens),
  });
  return std::unique_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::vector<EncodedToken>> Tokenizer::Impl::Encode(std::string_view text,
                                                                  EncodeOptions options,
                                                                  bool with_spans) const {
  constexpr size_t kLongest = std::numeric_limits<int32_t>::max();
  if (text.size() > kLongest) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is ", text.size(), " bytes long, allowed are ", kLongest));
  }
  if (const std::optional<size_t> offset = FindInvalidUtf8(text)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the text is not valid UTF-8: the byte 0x",
        absl::Hex(static_cast<uint8_t>(text[*offset]), absl::kZeroPad2), " at offset ", *offset));
  }
  Encoding encoding(*this, options.parse_special_tokens, with_spans);
  if (auto status = encoding.AddText(text); !status.ok()) return status;
  std::vector<EncodedToken> tokens = std::move(encoding).Take();
  post_processor.Run(text, options.add_special_tokens, tokens);
  return tokens;
}

absl::StatusOr<std::vector<Tokenizer::Token>> Tokenizer::EncodeWithOffsets(
    std::string_view text, EncodeOptions options) const {
  const auto encoded = impl_->Encode(text, options, /*with_spans=*/true);
  if (!encoded.ok()) return encoded.status();
  std::vector<Token> tokens;
  tokens.reserve(encoded->size());
  for (const EncodedToken& token : *encoded) {
    tokens.push_back({token.id, token.span.start, token.span.end});
  }
  return tokens;
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(std::string_view text,
                                                       EncodeOptions options) const {
  const auto encoded = impl_->Encode(text, options, /*with_spans=*/false);
  if (!encoded.ok()) return encoded.status();
  std::vector<TokenId> ids;
  ids.reserve(encoded->size());
  for (const EncodedToken& token : *encoded) ids.push_back(token.id);
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const TokenId> ids, bool skip_special_tokens) const {
  StreamDecoder decoder(*this, skip_special_tokens);
  std::string text;
  for (const TokenId id : ids) text += decoder.Append(id);
  return text + decoder.Finish();
}

std::string_view Tokenizer::TokenBytes(TokenId id) const {
  const TokenInfo* token = impl_->Find(id);
  return token == nullptr ? std::string_view() : token->prepared.bytes;
}

bool Tokenizer::IsSpecial(TokenId id) const {
  const TokenInfo* token = impl_->Find(id);
  return token != nullptr && token->special;
}

TokenId Tokenizer::vocab_size() const { return static_cast<TokenId>(impl_->tokens.size()); }

std::optional<TokenId> Tokenizer::eos_token_id() const { return impl_->eos_token_id; }

const std::string& Tokenizer::source() const { return impl_->source; }

const std::string& Tokenizer::eos_source() const { return impl_->eos_source; }

const std::vector<TokenId>& Tokenizer::prefix_token_ids() const {
  return impl_->special_tokens.before;
}

const std::vector<TokenId>& Tokenizer::suffix_token_ids() const {
  return impl_->special_tokens.after;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer),
      skip_special_tokens_(skip_special_tokens),
      stream_(tokenizer.impl_->decoder) {}

std::string StreamDecoder::Append(TokenId id) {
  const TokenInfo* token = tokenizer_.impl_->Find(id);
  if (token == nullptr || (skip_special_tokens_ && token->special)) return "";
  return stream_.Append(token->prepared);
}

std::string StreamDecoder::Finish() { return stream_.Finish(); }

}  // namespace ddl
