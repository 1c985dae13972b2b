#include "model/tokenizer/eos_tokens.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/strict_json.h"
#include "model/tokenizer/json_fields.h"

namespace ddl {
namespace {

// One id, several, or none.
absl::StatusOr<std::vector<int64_t>> ReadIds(const nlohmann::json& value) {
  std::vector<int64_t> ids;
  if (value.is_null()) return ids;
  const nlohmann::json list = value.is_array() ? value : nlohmann::json::array({value});
  for (const nlohmann::json& member : list) {
    if (!member.is_number_integer()) {
      return Fault(absl::StrCat("eos_token_id must be a token id or an array of them, found ",
                                ShowJson(value)));
    }
    ids.push_back(member.get<int64_t>());
  }
  return ids;
}

// Takes what `source` names, unless another named some before.
void Offer(const std::vector<int64_t>& named, const std::string& source, TokenId vocab_size,
           EosTokens& eos) {
  std::vector<TokenId> ids;
  std::vector<int64_t> outside;
  for (const int64_t id : named) {
    if (id < 0 || id >= vocab_size) {
      outside.push_back(id);
    } else if (std::find(ids.begin(), ids.end(), id) == ids.end()) {
      ids.push_back(static_cast<TokenId>(id));
    }
  }
  if (!outside.empty()) {
    eos.unused.push_back(absl::StrCat(source, ": ", absl::StrJoin(outside, ","), " (the model has ",
                                      vocab_size, " ids)"));
  }
  if (ids.empty()) return;
  if (eos.ids.empty()) {
    eos.ids = ids;
    eos.source = source;
  } else if (ids != eos.ids) {
    eos.unused.push_back(absl::StrCat(source, ": ", absl::StrJoin(ids, ",")));
  }
}

}  // namespace

absl::StatusOr<EosTokens> ReadEosTokens(const std::filesystem::path& folder,
                                        const Tokenizer* tokenizer, TokenId vocab_size) {
  EosTokens eos;
  for (const char* name : {"generation_config.json", "config.json"}) {
    const std::filesystem::path file = folder / name;
    if (!Exists(file)) continue;
    const absl::StatusOr<nlohmann::json> json = ReadJsonFile(file);
    if (!json.ok()) return json.status();
    const absl::StatusOr<std::vector<int64_t>> ids = ReadIds(Member(*json, "eos_token_id"));
    if (!ids.ok()) return InFile(file, ids.status());
    Offer(*ids, name, vocab_size, eos);
  }
  if (tokenizer != nullptr) {
    if (const std::optional<TokenId> id = tokenizer->eos_token_id()) {
      Offer({*id}, tokenizer->eos_source(), vocab_size, eos);
    }
  }
  return eos;
}

}  // namespace ddl
