#include "server/conversion/input_tokens.h"

#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ddl {

bool CheckBatch(const char* field, int size, const RequestLimits& limits, FieldErrors* errors) {
  if (size >= 1 && size <= limits.max_client_batch_size) return true;
  errors->Add(field, absl::StrCat("must hold 1...", limits.max_client_batch_size,
                                  " of them a call, not ", size));
  return false;
}

absl::Status NoTokenizer(const std::string& field, const RequestLimits& limits) {
  return absl::FailedPreconditionError(
      absl::StrCat(field, " needs a tokenizer, and model '", limits.model,
                   "' is served without one: its folder holds none, or the server was started with "
                   "--tokenizer=none. Send token ids instead"));
}

std::vector<TokenId> ToTokenIds(const google::protobuf::RepeatedField<uint32_t>& ids,
                                const std::string& field, int64_t vocab_size, FieldErrors* errors) {
  std::vector<TokenId> tokens;
  tokens.reserve(ids.size());
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= vocab_size) {
      // One is enough to see what is wrong; a whole prompt of them would not fit the answer.
      errors->Add(
          absl::StrCat(field, "[", i, "]"),
          absl::StrCat("must be less than the vocabulary's size, ", vocab_size, ", not ", ids[i]));
      return tokens;
    }
    tokens.push_back(static_cast<TokenId>(ids[i]));
  }
  return tokens;
}

void CheckScored(const std::vector<TokenId>& tokens, const std::string& field,
                 const RequestLimits& limits, FieldErrors* errors) {
  if (limits.tokenizer == nullptr) return;  // no row is known to be padding
  const TokenId end = limits.tokenizer->vocab_size();
  for (size_t i = 1; i < tokens.size(); ++i) {
    if (tokens[i] < end) continue;
    errors->Add(absl::StrCat(field, "[", i, "]"),
                absl::StrCat("must be less than ", end, " to be scored, not ", tokens[i],
                             ": ids from there on are padding rows of the embedding"));
    return;
  }
}

void CheckTruncation(const InputRules& rules, FieldErrors* errors) {
  if (!v1::TruncationDirection_IsValid(rules.truncation.direction())) {
    errors->AddRange(rules.truncation_field + ".direction",
                     "a value of the enum TruncationDirection",
                     static_cast<int>(rules.truncation.direction()));
  }
  if (rules.truncation.has_max_tokens() && rules.truncation.max_tokens() == 0) {
    errors->AddRange(rules.truncation_field + ".max_tokens", "at least 1", 0);
  }
}

absl::StatusOr<CutTokens> ToTokens(const v1::Input& input, const std::string& field,
                                   const InputRules& rules, const RequestLimits& limits,
                                   FieldErrors* errors) {
  CutTokens cut;
  switch (input.input_case()) {
    case v1::Input::kText: {
      if (limits.tokenizer == nullptr) return NoTokenizer(field + ".text", limits);
      absl::StatusOr<std::vector<TokenId>> tokens =
          limits.tokenizer->Encode(input.text(), rules.encoding);
      if (!tokens.ok()) {
        errors->Add(field + ".text", std::string(tokens.status().message()));
        return cut;
      }
      cut.tokens = *std::move(tokens);
      break;
    }
    case v1::Input::kTokenIds: {
      const auto& ids = input.token_ids().ids();
      cut.tokens = ToTokenIds(ids, field + ".token_ids.ids", limits.vocab_size, errors);
      if (cut.tokens.size() != static_cast<size_t>(ids.size())) return cut;
      break;
    }
    case v1::Input::INPUT_NOT_SET:
      errors->Add(field, "must hold text or token_ids");
      return cut;
  }
  if (cut.tokens.empty()) {
    errors->Add(field, "must hold at least 1 token, not 0");
    return cut;
  }

  size_t most = rules.most_tokens;
  std::string reason = rules.most_tokens_reason;
  // 0, when it was asked for, is a mistake that CheckTruncation names.
  if (const uint32_t asked = rules.truncation.max_tokens(); asked > 0 && asked < most) {
    most = asked;
    reason = rules.truncation_field + ".max_tokens";
  }
  if (cut.tokens.size() <= most) return cut;
  if (!rules.truncation.truncate()) {
    errors->Add(
        field,
        absl::StrCat("must be 1...", most, " tokens long (", reason, "), not ", cut.tokens.size(),
                     rules.truncation_field.empty()
                         ? ""
                         : absl::StrCat("; ", rules.truncation_field, ".truncate cuts it")));
    return cut;
  }
  cut.truncated = true;
  if (rules.truncation.direction() == v1::TRUNCATION_DIRECTION_LEFT) {
    cut.tokens.erase(cut.tokens.begin(), cut.tokens.end() - static_cast<ptrdiff_t>(most));
  } else {
    cut.tokens.resize(most);
  }
  return cut;
}

}  // namespace ddl
