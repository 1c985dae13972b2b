#include "model/tokenizer/tokenizer_json.h"

#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/strict_json.h"
#include "model/tokenizer/json_fields.h"
#include "model/tokenizer/part_fields.h"
#include "model/tokenizer/text_parts_json.h"
#include "model/tokenizer/token_parts_json.h"

namespace ddl {
namespace {

using Json = nlohmann::json;

absl::Status CheckModel(const Json& model) {
  if (!model.is_object()) return Fault(absl::StrCat("must be an object, found ", ShowJson(model)));
  // Files of old versions leave the type out.
  if (!Member(model, "type").is_null() && TypeOf(model) != "BPE") {
    return Unsupported(model, "\"BPE\"");
  }
  const Json& dropout = Member(model, "dropout");
  if (!dropout.is_null() && dropout != 0) {
    return Fault(absl::StrCat("dropout is ", ShowJson(dropout),
                              ", supported are null and 0: tokens must not be random"));
  }
  if (!Member(model, "vocab").is_object()) {
    return Fault(absl::StrCat("vocab must be an object, found ", ShowJson(Member(model, "vocab"))));
  }
  if (!Member(model, "merges").is_array()) {
    return Fault(
        absl::StrCat("merges must be an array, found ", ShowJson(Member(model, "merges"))));
  }
  return absl::OkStatus();
}

absl::Status ReadMerge(const Json& entry, TokenizerSpec& spec) {
  if (entry.is_string()) return AddMergeLine(entry.get_ref<const std::string&>(), spec);
  if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_string()) {
    return Fault(absl::StrCat("a merge is \"a b\" or [\"a\", \"b\"], found ", ShowJson(entry)));
  }
  return AddMerge(entry[0].get_ref<const std::string&>(), entry[1].get_ref<const std::string&>(),
                  spec);
}

// Leaves `value` alone where the member is missing or null.
absl::Status ReadOptionalString(const Json& object, const char* key, std::string& value) {
  if (Member(object, key).is_null()) return absl::OkStatus();
  absl::StatusOr<std::string> text = ReadString(object, key);
  if (text.ok()) value = *std::move(text);
  return text.status();
}

absl::Status ReadModel(const Json& model, TokenizerSpec& spec) {
  BytePairVocabulary& vocabulary = spec.vocabulary;
  absl::Status status = CheckModel(model);
  if (!status.ok()) return status;
  status.Update(At("vocab", ReadVocabulary(model["vocab"], spec)));
  status.Update(
      ReadOptionalString(model, "continuing_subword_prefix", vocabulary.continuing_prefix));
  status.Update(ReadOptionalString(model, "end_of_word_suffix", vocabulary.end_suffix));
  if (!Member(model, "unk_token").is_null()) {
    status.Update(ReadOptionalString(model, "unk_token", vocabulary.unknown.emplace()));
  }
  status.Update(ReadFlag(model, "fuse_unk", vocabulary.fuse_unknown));
  status.Update(ReadFlag(model, "byte_fallback", vocabulary.byte_fallback));
  status.Update(ReadFlag(model, "ignore_merges", vocabulary.ignore_merges));
  if (!status.ok()) return status;
  const Json& merges = model["merges"];
  vocabulary.merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    status = ReadMerge(merges[i], spec);
    if (!status.ok()) return At(absl::StrCat("merges[", i, "]"), status);
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const Json& root, TokenizerSpec& spec) {
  const Json& list = Member(root, "added_tokens");
  if (list.is_null()) return absl::OkStatus();
  if (!list.is_array()) {
    return Fault(absl::StrCat("added_tokens must be an array, found ", ShowJson(list)));
  }
  for (size_t i = 0; i < list.size(); ++i) {
    absl::StatusOr<AddedToken> token = ReadAddedToken(list[i]);
    absl::Status status = token.status();
    if (status.ok()) {
      const absl::StatusOr<TokenId> id = ReadId(Member(list[i], "id"));
      if (id.ok()) token->id = *id;
      status = id.ok() ? AddToken(*std::move(token), spec) : id.status();
    }
    if (!status.ok()) return At(absl::StrCat("added_tokens[", i, "]"), status);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadTokenizerJson(const Json& root, TokenizerSpec& spec) {
  const Json& version = Member(root, "version");
  if (!version.is_null() && version != "1.0") {
    return Fault(absl::StrCat("version is ", ShowJson(version), ", supported is \"1.0\""));
  }
  if (auto status = At("model", ReadModel(Member(root, "model"), spec)); !status.ok()) {
    return status;
  }
  for (const auto read :
       {ReadNormalizer, ReadPreTokenizer, ReadAddedTokens, ReadPostProcessor, ReadDecoder}) {
    if (auto status = read(root, spec); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const Json& object, TokenizerSpec& spec) {
  for (auto member = object.begin(); member != object.end(); ++member) {
    const std::string& text = member.key();
    const absl::StatusOr<TokenId> id = ReadId(*member);
    if (!id.ok()) return At(Quoted(text), id.status());
    const auto [other, is_new] = spec.texts.emplace(*id, text);
    if (!is_new) {
      return Fault(
          absl::StrCat(Quoted(other->second), " and ", Quoted(text), " have the same id, ", *id));
    }
    spec.ids.emplace(text, *id);
    spec.vocabulary.entries.push_back({*id, text});
  }
  if (spec.ids.empty()) return Fault("no tokens");
  return absl::OkStatus();
}

absl::StatusOr<AddedToken> ReadAddedToken(const Json& object) {
  if (!object.is_object()) {
    return Fault(absl::StrCat("must be an object, found ", ShowJson(object)));
  }
  const Json& content = Member(object, "content");
  if (!content.is_string() || content == "") {
    return Fault(
        absl::StrCat("content must be a string that is not empty, found ", ShowJson(content)));
  }
  AddedToken token;
  token.content = content.get<std::string>();
  auto status = ReadFlag(object, "special", token.special);
  token.normalized = !token.special;
  status.Update(ReadFlag(object, "normalized", token.normalized));
  status.Update(ReadFlag(object, "lstrip", token.lstrip));
  status.Update(ReadFlag(object, "rstrip", token.rstrip));
  status.Update(ReadFlag(object, "single_word", token.single_word));
  if (!status.ok()) return status;
  return token;
}

}  // namespace ddl
