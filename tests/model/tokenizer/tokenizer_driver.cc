// Puts the tokenizer at the service of tokenizer_parity.py: tokenizer_driver FOLDER.
//
// Reads one JSON value a line and answers each with one line.
//   a string          -> {"ids", "spans": [start, end, ...] in bytes, "decoded", "streamed"}
//   {"special": text} -> the same, with the special tokens of the post-processor
//   {"plain": text}   -> the same, with special tokens in the text as text
//   an array of ids   -> {"decoded", "streamed", "skipped": without special tokens}
// or {"error": message}.
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer/tokenizer.h"
#include "nlohmann/json.hpp"

namespace ddl {
namespace {

using Json = nlohmann::json;

std::string Streamed(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  StreamDecoder decoder(tokenizer, /*skip_special_tokens=*/false);
  std::string text;
  for (const TokenId id : ids) text += decoder.Append(id);
  return text + decoder.Finish();
}

Json Error(const absl::Status& status) { return {{"error", std::string(status.message())}}; }

Json AnswerText(const Tokenizer& tokenizer, const std::string& text,
                Tokenizer::EncodeOptions options) {
  const auto tokens = tokenizer.EncodeWithOffsets(text, options);
  if (!tokens.ok()) return Error(tokens.status());
  std::vector<TokenId> ids;
  std::vector<uint32_t> spans;
  for (const Tokenizer::Token& token : *tokens) {
    ids.push_back(token.id);
    spans.insert(spans.end(), {token.start, token.end});
  }
  return {{"ids", ids},
          {"spans", spans},
          {"decoded", tokenizer.Decode(ids, /*skip_special_tokens=*/false)},
          {"streamed", Streamed(tokenizer, ids)}};
}

Json AnswerIds(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  return {{"decoded", tokenizer.Decode(ids, /*skip_special_tokens=*/false)},
          {"streamed", Streamed(tokenizer, ids)},
          {"skipped", tokenizer.Decode(ids, /*skip_special_tokens=*/true)}};
}

Json Answer(const Tokenizer& tokenizer, const Json& request) {
  if (request.is_string()) return AnswerText(tokenizer, request, {});
  if (request.is_array()) return AnswerIds(tokenizer, request);
  if (request.contains("plain")) {
    return AnswerText(tokenizer, request["plain"], {.parse_special_tokens = false});
  }
  return AnswerText(tokenizer, request.at("special"), {.add_special_tokens = true});
}

int Run(const char* folder) {
  const auto tokenizer = Tokenizer::Load(folder);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << '\n';
    return 2;
  }
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << Answer(**tokenizer, Json::parse(line)) << '\n';
  }
  return 0;
}

}  // namespace
}  // namespace ddl

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  if (argc == 2) return ddl::Run(argv[1]);
  std::cerr << "usage: tokenizer_driver FOLDER\n";
  return 2;
}
