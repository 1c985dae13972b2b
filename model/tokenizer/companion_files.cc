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
constexpr char kAdditional[] = "additional_special_tokens";

// A file that need not be there: then an empty object.
absl::StatusOr<Json> ReadIfThere(const std::filesystem::path& file) {
  return Exists(file) ? ReadJsonFile(file) : absl::StatusOr<Json>(Json::object());
}

// A special token is a string, or an object with content. Empty when there is none.
absl::StatusOr<std::string> ReadContent(const Json& value, const char* key) {
  if (value.is_null()) return std::string();
  const Json& content = value.is_object() ? Member(value, "content") : value;
  if (!content.is_string() || content == "") {
    return Fault(
        absl::StrCat(key, " must be a string, or an object with content, found ", ShowJson(value)));
  }
  return content.get<std::string>();
}

// Found in the text and left out of decoded text, also where the files do not say so.
void MakeSpecial(const std::string& content, TokenizerSpec& spec) {
  const auto id = spec.ids.find(content);
  if (id == spec.ids.end()) return;
  AddedToken& token = spec.added_tokens[id->second];
  token.id = id->second;
  token.content = content;
  token.special = true;
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
    const absl::StatusOr<std::string> content = ReadContent(Member(names, key), key);
    if (!content.ok()) return content.status();
    MakeSpecial(*content, spec);
  }
  const Json& additional = Member(names, kAdditional);
  if (!additional.is_null() && !additional.is_array()) {
    return Fault(absl::StrCat(kAdditional, " must be an array, found ", ShowJson(additional)));
  }
  for (const Json& value : additional) {
    const absl::StatusOr<std::string> content = ReadContent(value, kAdditional);
    if (!content.ok()) return content.status();
    MakeSpecial(*content, spec);
  }
  return absl::OkStatus();
}

// The id of a named special token, none where the files do not name it.
absl::StatusOr<std::optional<TokenId>> ReadNamedToken(const Json& names, const char* key,
                                                      const TokenizerSpec& spec) {
  const absl::StatusOr<std::string> content = ReadContent(Member(names, key), key);
  if (!content.ok()) return content.status();
  if (content->empty()) return std::nullopt;
  const auto id = spec.ids.find(*content);
  if (id == spec.ids.end()) {
    return Fault(absl::StrCat(key, " is ", Quoted(*content), ", which the vocabulary lacks"));
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
