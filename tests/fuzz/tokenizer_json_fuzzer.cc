// Any bytes as tokenizer.json: refused, or a tokenizer that works on any text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/strict_json.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/tokenizer_json.h"
#include "model/tokenizer/utf8.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void Try(const ddl::Tokenizer& tokenizer, const std::string& text) {
  for (const bool add_special_tokens : {false, true}) {
    const auto tokens =
        tokenizer.EncodeWithOffsets(text, {.add_special_tokens = add_special_tokens});
    const auto alone = tokenizer.Encode(text, {.add_special_tokens = add_special_tokens});
    Require(tokens.ok() == alone.ok());
    if (!tokens.ok()) continue;
    std::vector<ddl::TokenId> ids;
    for (const ddl::Tokenizer::Token& token : *tokens) {
      Require(token.start <= token.end && token.end <= text.size());
      ids.push_back(token.id);
    }
    Require(ids == *alone);
    const std::string decoded = tokenizer.Decode(ids, /*skip_special_tokens=*/false);
    Require(!ddl::FindInvalidUtf8(decoded));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto json = ddl::ParseJsonObject(bytes, "fuzz");
  if (!json.ok()) return 0;
  ddl::TokenizerSpec spec;
  if (!ddl::ReadTokenizerJson(*json, spec).ok()) return 0;
  // A table of ids up to the largest is no fault, but takes a while.
  for (const auto& [id, text] : spec.texts) {
    if (id > 10000) return 0;
  }
  const auto tokenizer = ddl::Tokenizer::Create(std::move(spec));
  if (!tokenizer.ok()) return 0;
  Try(**tokenizer, "");
  Try(**tokenizer, "he the<s>  é\u3000日本 123\r\n<|endoftext|>'s\U0001F600");
  if (!ddl::FindInvalidUtf8(bytes)) Try(**tokenizer, std::string(bytes.substr(0, 500)));
  return 0;
}
