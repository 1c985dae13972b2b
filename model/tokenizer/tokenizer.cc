#include "model/tokenizer/tokenizer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/byte_pair_encoder.h"
#include "model/tokenizer/tokenizer_files.h"
#include "model/tokenizer/unicode_pattern.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

// What one id stands for.
struct TokenInfo {
  std::string bytes;
  bool special = false;
};

std::vector<TokenInfo> MakeTable(const TokenizerSpec& spec) {
  std::vector<TokenInfo> table;
  const auto row = [&table](TokenId id) -> TokenInfo& {
    if (static_cast<size_t>(id) >= table.size()) table.resize(id + 1);
    return table[id];
  };
  for (const AddedToken& token : spec.added_tokens) {
    row(token.id) = {.bytes = token.content, .special = token.special};
  }
  // Last: an added token that is also in the vocabulary, where "é" is how the byte 0xE9 is written,
  // stands for the same bytes as there.
  for (const auto& entry : spec.vocabulary.entries) row(entry.id).bytes = entry.bytes;
  for (const auto& entry : spec.unreachable) row(entry.id).bytes = entry.bytes;
  return table;
}

}  // namespace

struct Tokenizer::Impl {
  // Encodes the segments of one text, in order.
  class Encoding;

  AddedTokens added_tokens;
  std::optional<UnicodePattern> word;  // none: a whole segment is one word
  BytePairEncoder encoder;
  bool add_prefix_space = false;
  std::vector<TokenId> prefix;
  std::vector<TokenId> suffix;
  std::vector<TokenInfo> tokens;  // by id
  std::optional<TokenId> eos_token_id;

  const TokenInfo* Find(TokenId id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens.size() ? &tokens[id] : nullptr;
  }
};

class Tokenizer::Impl::Encoding {
 public:
  explicit Encoding(const Impl& impl) : impl_(impl) {
    if (impl.word) matcher_.emplace(*impl.word);
  }

  void AddToken(TokenId id, size_t start, size_t end) {
    tokens_.push_back({id, static_cast<uint32_t>(start), static_cast<uint32_t>(end)});
  }

  // `text` begins at byte `offset` of the whole text.
  absl::Status AddText(std::string_view text, size_t offset) {
    if (!impl_.add_prefix_space || text.front() == ' ') return AddWords(text, offset, 0);
    return AddWords(std::string(" ").append(text), offset, 1);
  }

  std::vector<Token> Take() && { return std::move(tokens_); }

 private:
  // The first `extra` bytes of `text` are not in the whole text.
  absl::Status AddWords(std::string_view text, size_t offset, size_t extra) {
    size_t position = 0;
    while (position < text.size()) {
      absl::StatusOr<size_t> length = text.size() - position;
      if (matcher_) length = matcher_->MatchLength(text, position);
      if (!length.ok()) return length.status();
      if (*length == 0) return absl::InternalError("the word pattern left a part of the text out");
      pieces_.clear();
      const auto no_token =
          impl_.encoder.Encode(text.substr(position, *length), workspace_, pieces_);
      const auto in_whole = [&](size_t at) { return offset + std::max(at, extra) - extra; };
      if (no_token) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the vocabulary has no token for the byte 0x",
            absl::Hex(static_cast<uint8_t>(text[position + *no_token]), absl::kZeroPad2),
            " at offset ", in_whole(position + *no_token)));
      }
      for (const BytePairEncoder::Piece& piece : pieces_) {
        AddToken(piece.id, in_whole(position), in_whole(position + piece.length));
        position += piece.length;
      }
    }
    return absl::OkStatus();
  }

  const Impl& impl_;
  std::optional<PatternMatcher> matcher_;
  BytePairEncoder::Workspace workspace_;
  std::vector<BytePairEncoder::Piece> pieces_;
  std::vector<Token> tokens_;
};

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Load(
    const std::filesystem::path& folder) {
  absl::StatusOr<TokenizerSpec> spec = ReadTokenizerFiles(folder);
  if (!spec.ok()) return spec.status();
  absl::StatusOr<AddedTokens> added_tokens = AddedTokens::Create(spec->added_tokens);
  if (!added_tokens.ok()) return added_tokens.status();
  std::optional<UnicodePattern> word;
  if (spec->split_words) {
    absl::StatusOr<UnicodePattern> pattern = UnicodePattern::Gpt2Word();
    if (!pattern.ok()) return pattern.status();
    word = *std::move(pattern);
  }
  auto impl = std::make_unique<const Impl>(Impl{
      .added_tokens = *std::move(added_tokens),
      .word = std::move(word),
      .encoder = BytePairEncoder(spec->vocabulary),
      .add_prefix_space = spec->add_prefix_space,
      .prefix = spec->prefix,
      .suffix = spec->suffix,
      .tokens = MakeTable(*spec),
      .eos_token_id = spec->eos_token_id,
  });
  return std::unique_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::vector<Tokenizer::Token>> Tokenizer::EncodeWithOffsets(
    std::string_view text, bool add_special_tokens) const {
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
  const auto segments = impl_->added_tokens.Split(text);
  if (!segments.ok()) return segments.status();
  Impl::Encoding encoding(*impl_);
  if (add_special_tokens) {
    for (const TokenId id : impl_->prefix) encoding.AddToken(id, 0, 0);
  }
  for (const AddedTokens::Segment& segment : *segments) {
    if (segment.id) {
      encoding.AddToken(*segment.id, segment.start, segment.end);
      continue;
    }
    const absl::Status status =
        encoding.AddText(text.substr(segment.start, segment.end - segment.start), segment.start);
    if (!status.ok()) return status;
  }
  if (add_special_tokens) {
    for (const TokenId id : impl_->suffix) encoding.AddToken(id, text.size(), text.size());
  }
  return std::move(encoding).Take();
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(std::string_view text,
                                                       bool add_special_tokens) const {
  const auto tokens = EncodeWithOffsets(text, add_special_tokens);
  if (!tokens.ok()) return tokens.status();
  std::vector<TokenId> ids;
  ids.reserve(tokens->size());
  for (const Token& token : *tokens) ids.push_back(token.id);
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
  return token == nullptr ? std::string_view() : token->bytes;
}

bool Tokenizer::IsSpecial(TokenId id) const {
  const TokenInfo* token = impl_->Find(id);
  return token != nullptr && token->special;
}

TokenId Tokenizer::vocab_size() const { return static_cast<TokenId>(impl_->tokens.size()); }

std::optional<TokenId> Tokenizer::eos_token_id() const { return impl_->eos_token_id; }

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

std::string StreamDecoder::Append(TokenId id) {
  std::string text;
  if (skip_special_tokens_ && tokenizer_.IsSpecial(id)) return text;
  pending_.append(tokenizer_.TokenBytes(id));
  pending_.erase(0, AppendWholeCharacters(pending_, text));
  return text;
}

std::string StreamDecoder::Finish() {
  if (pending_.empty()) return "";
  pending_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace ddl
