#include "model/tokenizer/tokenizer_spec.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "model/tokenizer/json_fields.h"

namespace ddl {

absl::Status AddMerge(const std::string& left, const std::string& right, TokenizerSpec& spec) {
  const size_t prefix = spec.vocabulary.continuing_prefix.size();
  const std::string merged = left + (right.size() < prefix ? "" : right.substr(prefix));
  std::array<TokenId, 3> ids{};
  size_t count = 0;
  for (const std::string* token : {&left, &right, &merged}) {
    const auto id = spec.ids.find(*token);
    if (id == spec.ids.end()) {
      return Fault(absl::StrCat("the merge of ", Quoted(left), " and ", Quoted(right), " needs ",
                                Quoted(*token), ", which is not in the vocabulary"));
    }
    ids[count++] = id->second;
  }
  const auto rank = static_cast<int32_t>(spec.vocabulary.merges.size());
  spec.vocabulary.merges.push_back({ids[0], ids[1], ids[2], rank});
  return absl::OkStatus();
}

absl::Status AddMergeLine(const std::string& line, TokenizerSpec& spec) {
  const std::vector<std::string> parts = absl::StrSplit(line, ' ');
  if (parts.size() != 2 || parts[0].empty() || parts[1].empty()) {
    return Fault(absl::StrCat("a merge is two tokens with a space between, found ", Quoted(line)));
  }
  return AddMerge(parts[0], parts[1], spec);
}

absl::Status AddToken(AddedToken token, TokenizerSpec& spec) {
  const TokenId id_of_text = spec.ids.emplace(token.content, token.id).first->second;
  const std::string& text_of_id = spec.texts.emplace(token.id, token.content).first->second;
  const std::string claim = absl::StrCat(Quoted(token.content), " has id ", token.id);
  if (text_of_id != token.content) {
    return Fault(absl::StrCat(claim, ", which is that of ", Quoted(text_of_id)));
  }
  if (id_of_text != token.id) {
    return Fault(absl::StrCat(claim, ", but the vocabulary gives it id ", id_of_text));
  }
  const auto before = spec.added_tokens.find(token.id);
  if (before != spec.added_tokens.end()) token.special |= before->second.special;
  const TokenId id = token.id;
  spec.added_tokens.insert_or_assign(id, std::move(token));
  return absl::OkStatus();
}

absl::Status UseGpt2Parts(bool add_prefix_space, TokenizerSpec& spec) {
  absl::StatusOr<Regex> pattern = Regex::FromOniguruma(PreTokenizer::kGpt2Pattern);
  if (!pattern.ok()) return pattern.status();
  std::vector<PreTokenizer::Step> steps;
  steps.emplace_back(PreTokenizer::ByteLevel{add_prefix_space, *std::move(pattern)});
  spec.pre_tokenizer = PreTokenizer(std::move(steps));
  spec.decoder = TokenDecoder({}, TokenDecoder::ByteLevel(), {});
  return absl::OkStatus();
}

absl::Status UseByteLevelParts(const std::string& pattern, TokenizerSpec& spec) {
  absl::StatusOr<Regex> words = Regex::FromOniguruma(pattern);
  if (!words.ok()) return words.status();
  std::vector<PreTokenizer::Step> steps;
  steps.emplace_back(PreTokenizer::Split{*std::move(words), SplitBehavior::kIsolated});
  steps.emplace_back(PreTokenizer::ByteLevel());
  spec.pre_tokenizer = PreTokenizer(std::move(steps));
  spec.decoder = TokenDecoder({}, TokenDecoder::ByteLevel(), {});
  return absl::OkStatus();
}

}  // namespace ddl
