#include "model/tokenizer/tiktoken.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/json_fields.h"
#include "model/tokenizer/tokenizer_json.h"

namespace ddl {
namespace {

// A line has two parts, and tokens are short: this is far beyond any real one.
constexpr size_t kLongestToken = 4096;

// The patterns of tiktoken 0.12, in Oniguruma's syntax: \z for their $.
constexpr char kGpt2Words[] =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++\z|\s+(?!\S)|\s)";
constexpr char kCl100kWords[] =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|)"
    R"(\s++\z|\s*[\r\n]|\s+(?!\S)|\s)";
constexpr char kO200kWords[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwenWords[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kLlama3Words[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

struct SpecialToken {
  TokenId id = 0;
  std::string content;
};

struct Encoding {
  const char* words = nullptr;
  std::vector<SpecialToken> special_tokens;
};

const absl::flat_hash_map<std::string, Encoding>& Encodings() {
  static const auto& encodings = *new absl::flat_hash_map<std::string, Encoding>([] {
    const Encoding gpt2{kGpt2Words, {{50256, "<|endoftext|>"}}};
    Encoding qwen{kQwenWords,
                  {{151643, "<|endoftext|>"}, {151644, "<|im_start|>"}, {151645, "<|im_end|>"}}};
    for (int i = 0; i < 205; ++i) {
      qwen.special_tokens.push_back({151646 + i, absl::StrCat("<|extra_", i, "|>")});
    }
    Encoding llama3{kLlama3Words, {}};
    TokenId next = 128000;
    for (const char* name :
         {"begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
          "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id",
          "eot_id", "python_tag", "image"}) {
      llama3.special_tokens.push_back({next++, absl::StrCat("<|", name, "|>")});
    }
    for (int i = 2; next < 128256; ++i) {
      llama3.special_tokens.push_back({next++, absl::StrCat("<|reserved_special_token_", i, "|>")});
    }
    return absl::flat_hash_map<std::string, Encoding>{
        {"gpt2", gpt2},
        {"r50k_base", gpt2},
        {"p50k_base", gpt2},
        {"cl100k_base",
         {kCl100kWords,
          {{100257, "<|endoftext|>"},
           {100258, "<|fim_prefix|>"},
           {100259, "<|fim_middle|>"},
           {100260, "<|fim_suffix|>"},
           {100276, "<|endofprompt|>"}}}},
        {"o200k_base", {kO200kWords, {{199999, "<|endoftext|>"}, {200018, "<|endofprompt|>"}}}},
        {"qwen", qwen},
        {"llama3", llama3},
    };
  }());
  return encodings;
}

struct Line {
  std::string bytes;
  TokenId id = 0;
};

absl::StatusOr<Line> ReadLine(absl::string_view text) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits(' ', 1));
  Line line;
  if (parts.second.empty() || !absl::Base64Unescape(parts.first, &line.bytes) ||
      line.bytes.empty()) {
    return Fault(absl::StrCat("a token is its bytes in base64, a space and its rank, found ",
                              Quoted({text.data(), text.size()})));
  }
  if (line.bytes.size() > kLongestToken) {
    return Fault(
        absl::StrCat("a token of ", line.bytes.size(), " bytes, allowed are ", kLongestToken));
  }
  if (!absl::SimpleAtoi(parts.second, &line.id) || line.id < 0 || line.id > kMaxTokenId) {
    return Fault(absl::StrCat("a rank must be a whole number from 0 to ", kMaxTokenId, ", found ",
                              Quoted({parts.second.data(), parts.second.size()})));
  }
  return line;
}

using IdsByBytes = absl::flat_hash_map<std::string, TokenId>;

absl::Status ReadRanks(std::string_view text, IdsByBytes& ids, TokenizerSpec& spec) {
  int line_number = 0;
  for (absl::string_view line_text :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++line_number;
    absl::ConsumeSuffix(&line_text, "\r");
    if (line_text.empty()) continue;
    const absl::StatusOr<Line> line = ReadLine(line_text);
    const std::string place = absl::StrCat("line ", line_number);
    if (!line.ok()) return At(place, line.status());
    const std::string written = WriteBytes(line->bytes);
    if (!ids.emplace(line->bytes, line->id).second) {
      return At(place, Fault("the token is there a second time"));
    }
    if (!spec.texts.emplace(line->id, written).second) {
      return At(place, Fault(absl::StrCat("another token has the rank ", line->id)));
    }
    spec.ids.emplace(written, line->id);
    spec.vocabulary.entries.push_back({line->id, written});
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (!ids.contains(std::string(1, static_cast<char>(byte)))) {
      return Fault(absl::StrCat("no token for the byte 0x", absl::Hex(byte, absl::kZeroPad2)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool LooksLikeTiktoken(std::string_view text) {
  return ReadLine({text.data(), std::min(text.find('\n'), text.size())}).ok();
}

absl::Status ReadTiktoken(std::string_view name, std::string_view text, TokenizerSpec& spec) {
  const auto encoding = Encodings().find(std::string(name));
  if (encoding == Encodings().end()) {
    std::vector<std::string> names;
    for (const auto& [known, unused] : Encodings()) names.push_back(known);
    std::sort(names.begin(), names.end());
    return Fault(absl::StrCat("the words and special tokens of ", Quoted(name),
                              " are not known: name the file after its encoding, one of ",
                              absl::StrJoin(names, ", "), ", or make a tokenizer.json of it"));
  }
  IdsByBytes ids;
  if (auto status = ReadRanks(text, ids, spec); !status.ok()) return status;
  // tiktoken joins the neighbours that make the token of the lowest rank, whatever they are.
  for (const auto& [bytes, id] : ids) {
    for (size_t i = 1; i < bytes.size(); ++i) {
      const auto left = ids.find(absl::string_view(bytes).substr(0, i));
      const auto right = ids.find(absl::string_view(bytes).substr(i));
      if (left == ids.end() || right == ids.end()) continue;
      spec.vocabulary.merges.push_back({left->second, right->second, id, id});
    }
  }
  spec.vocabulary.ignore_merges = true;
  for (const SpecialToken& token : encoding->second.special_tokens) {
    const absl::Status status =
        AddToken({.id = token.id, .content = token.content, .special = true}, spec);
    if (!status.ok()) return At(absl::StrCat("as ", std::string(name)), status);
  }
  return UseByteLevelParts(encoding->second.words, spec);
}

}  // namespace ddl
