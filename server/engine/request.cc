#include "server/engine/request.h"

namespace ddl {

absl::Span<const std::vector<TokenId>> Request::inputs() const {
  if (const auto* generate = std::get_if<GenerateParams>(&params)) {
    return absl::MakeConstSpan(&generate->prompt, 1);
  }
  const auto* embed = std::get_if<EmbedParams>(&params);
  return embed != nullptr ? embed->inputs : std::get<ScoreParams>(params).inputs;
}

int64_t Request::NumInputTokens() const {
  int64_t tokens = 0;
  for (const std::vector<TokenId>& input : inputs()) tokens += static_cast<int64_t>(input.size());
  return tokens;
}

int64_t Request::MaxTokens(int32_t max_context_length) const {
  const auto* generate = std::get_if<GenerateParams>(&params);
  if (generate == nullptr) return NumInputTokens();
  return NumInputTokens() + int64_t{generate->n} * generate->MaxNewTokens(max_context_length);
}

}  // namespace ddl
