#include "model/tokenizer/companion_files.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/strict_json.h"
#include "model/tokenizer/json_fields.h"
#include "model/tokenizer/tokenizer_json.h"

namespace ddl {
namespace {

using Json = nlohmann::json;

constexpr const char* kSpecialTokenKeys[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                             "pad_token", "cls_token", "mask_token"};
// Lists of more of them; the second is how transformers 5 calls it.
constexpr const char* kListKeys[] = {"additional_special_tokens", "extra_special_tokens"};

// A file that need not be there: then an empty object.
absl::StatusOr<Json> ReadIfThere(const std::filesystem::path& file) {
  return Exists(file) ? ReadJsonFile(file) : absl::StatusOr<Json>(Json::object());
}

// A special token is a string, or an object with content and maybe flags. None for null and "".
absl::StatusOr<std::optional<AddedToken>> ReadSpecialToken(const Json& value, const char* key) {
  if (value.is_null() || value == "") return std::nullopt;
  if (value.is_string()) return AddedToken{.content = value.get<std::string>(), .special = true};
  if (!value.is_object()) {
    return Fault(
        absl::StrCat(key, " must be a string, or an object with content, found ", ShowJson(value)));
  }
  absl::StatusOr<AddedToken> token = ReadAddedToken(value);
  if (!token.ok()) return At(key, token.status());
  token->special = true;
  if (Member(value, "normalized").is_null()) token->normalized = false;
  return *std::move(token);
}

// Found in the text and left out of decoded text, also where the files do not say so. Its flags
// are those of the added token, where it is one already.
absl::Status MakeSpecial(const Json& value, const char* key, TokenizerSpec& spec) {
  const absl::StatusOr<std::optional<AddedToken>> token = ReadSpecialToken(value, key);
  if (!token.ok()) return token.status();
  if (!*token) return absl::OkStatus();
  const auto id = spec.ids.find((*token)->content);
  if (id == spec.ids.end()) return absl::OkStatus();
  AddedToken& added = spec.added_tokens.try_emplace(id->second, **token).first->second;
  added.id = id->second;
  added.special = true;
  return absl::OkStatus();
}

absl::Status ReadAddedTokensDecoder(const Json& tokens, TokenizerSpec& spec) {
  if (!tokens.is_object()) {
    return Fault(absl::StrCat("must be an object, found ", ShowJson(tokens)));
  }
  for (auto member = tokens.begin(); member != tokens.end(); ++member) {
    TokenId id = 0;
    if (!absl::SimpleAtoi(member.key(), &id) || id < 0 || id > kMaxTokenId) {
      return Fault(absl::StrCat(Quoted(member.key()), " must be a token id"));
    }
    absl::StatusOr<AddedToken> token = ReadAddedToken(*member);
    if (token.ok()) token->id = id;
    const absl::Status status = token.ok() ? AddToken(*std::move(token), spec) : token.status();
    if (!status.ok()) return At(Quoted(member.key()), status);
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokensJson(const Json& tokens, TokenizerSpec& spec) {
  for (auto member = tokens.begin(); member != tokens.end(); ++member) {
    const absl::StatusOr<TokenId> id = ReadId(*member);
    if (!id.ok()) return At(Quoted(member.key()), id.status());
    if (member.key().empty()) return Fault("a token must not be empty");
    if (spec.added_tokens.contains(*id)) continue;  // tokenizer.json says more about it
    AddedToken token{.id = *id, .content = member.key(), .normalized = true};
    if (auto status = AddToken(std::move(token), spec); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// What the files say of the named special tokens: `names` has their keys.
absl::Status MarkSpecialTokens(const Json& names, TokenizerSpec& spec) {
  for (const char* key : kSpecialTokenKeys) {
    if (auto status = MakeSpecial(Member(names, key), key, spec); !status.ok()) return status;
  }
  for (const char* key : kListKeys) {
    const Json& list = Member(names, key);
    if (!list.is_null() && !list.is_structured()) {
      return Fault(absl::StrCat(key, " must be an array or an object, found ", ShowJson(list)));
    }
    for (const Json& value : list) {  // of an object the values, whose names are the models' own
      if (auto status = MakeSpecial(value, key, spec); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

// The id of a named special token, none where the files do not name it.
absl::StatusOr<std::optional<TokenId>> ReadNamedToken(const Json& names, const char* key,
                                                      const TokenizerSpec& spec) {
  const absl::StatusOr<std::optional<AddedToken>> token = ReadSpecialToken(Member(names, key), key);
  if (!token.ok()) return token.status();
  if (!*token) return std::nullopt;
  const auto id = spec.ids.find((*token)->content);
  if (id == spec.ids.end()) {
    return Fault(
        absl::StrCat(key, " is ", Quoted((*token)->content), ", which the vocabulary lacks"));
  }
  return id->second;
}

absl::Status ReadSurroundings(const Json& config, const Json& names, TokenizerSpec& spec) {
  bool adds_bos = false;
  bool adds_eos = false;
  absl::Status status = ReadFlag(config, "add_bos_token", adds_bos);
  status.Update(ReadFlag(config, "add_eos_token", adds_eos));
  if (!status.ok()) return status;
  PostProcessor::Surround surround;
  if (adds_bos) {
    const auto bos = ReadNamedToken(names, "bos_token", spec);
    if (!bos.ok()) return bos.status();
    if (*bos) surround.before.push_back(**bos);
  }
  if (adds_eos) {
    const auto eos = ReadNamedToken(names, "eos_token", spec);
    if (!eos.ok()) return eos.status();
    if (*eos) surround.after.push_back(**eos);
  }
  if (adds_bos || adds_eos) spec.post_processor = PostProcessor({std::move(surround)});
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadCompanionFiles(const std::filesystem::path& folder, bool has_tokenizer_json,
                                TokenizerSpec& spec) {
  const std::filesystem::path config_file = folder / "tokenizer_config.json";
  const absl::StatusOr<Json> config = ReadIfThere(config_file);
  if (!config.ok()) return config.status();
  Json names = *config;
  std::filesystem::path names_file = config_file;
  const Json& decoder = Member(*config, "added_tokens_decoder");
  if (!decoder.is_null()) {
    auto status = At("added_tokens_decoder", ReadAddedTokensDecoder(decoder, spec));
    if (!status.ok()) return InFile(config_file, status);
  } else {
    const std::filesystem::path map_file = folder / "special_tokens_map.json";
    const absl::StatusOr<Json> map = ReadIfThere(map_file);
    if (!map.ok()) return map.status();
    const bool map_names = map->contains("eos_token") || !config->contains("eos_token");
    if (Exists(map_file) && map_names) names_file = map_file;
    names.update(*map);
    const std::filesystem::path tokens_file = folder / "added_tokens.json";
    const absl::StatusOr<Json> tokens = ReadIfThere(tokens_file);
    if (!tokens.ok()) return tokens.status();
    auto status = ReadAddedTokensJson(*tokens, spec);
    if (!status.ok()) return InFile(tokens_file, status);
  }
  if (auto status = MarkSpecialTokens(names, spec); !status.ok()) return InFile(names_file, status);
  const auto eos = ReadNamedToken(names, "eos_token", spec);
  if (!eos.ok()) return InFile(names_file, eos.status());
  if (*eos) {
    spec.eos_token_id = *eos;
    spec.eos_source = names_file.filename().string();
  }
  if (has_tokenizer_json) return absl::OkStatus();
  return InFile(config_file, ReadSurroundings(*config, names, spec));
}

}  // namespace ddl
