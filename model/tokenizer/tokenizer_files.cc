#include "model/tokenizer/tokenizer_files.h"

#include <array>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/strict_json.h"
#include "nlohmann/json.hpp"

namespace ddl {
namespace {

using Json = nlohmann::json;
using IdsByText = absl::flat_hash_map<std::string, TokenId>;

constexpr char kEndOfText[] = "<|endoftext|>";

// Within a file: the message says where in it, Load adds the file's name.
absl::Status Fault(const std::string& message) { return absl::InvalidArgumentError(message); }

absl::Status InFile(const std::filesystem::path& file, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(file.string(), ": ", status.message()));
}

std::string Quoted(std::string_view text) { return absl::StrCat("\"", ShowName(text), "\""); }

// ---- JSON ----

const Json& Member(const Json& object, const char* key) {
  static const Json null;
  const auto member = object.find(key);
  return member == object.end() ? null : *member;
}

absl::Status ReadFlag(const Json& object, const char* key, bool& flag) {
  const Json& value = Member(object, key);
  if (value.is_null()) return absl::OkStatus();
  if (!value.is_boolean()) {
    return Fault(absl::StrCat(key, " must be true or false, found ", ShowJson(value)));
  }
  flag = value.get<bool>();
  return absl::OkStatus();
}

absl::StatusOr<TokenId> ReadId(const Json& value) {
  if (!value.is_number_integer() || value < 0 || value > kMaxTokenId) {
    return Fault(absl::StrCat("a token id must be a whole number from 0 to ", kMaxTokenId,
                              ", found ", ShowJson(value)));
  }
  return value.get<TokenId>();
}

std::string TypeOf(const Json& object) {
  const Json& type = Member(object, "type");
  return type.is_string() ? type.get<std::string>() : "";
}

absl::Status Unsupported(const char* part, const Json& found, const char* supported) {
  const std::string type = TypeOf(found);
  return Fault(absl::StrCat(part, " is ", type.empty() ? ShowJson(found) : Quoted(type),
                            ", supported: ", supported));
}

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& file) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) return Fault("not a regular file");
  std::ifstream stream(file, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream) return Fault("cannot be read");
  return text;
}

// Unlike the others' here, its errors name the file.
absl::StatusOr<Json> ReadJson(const std::filesystem::path& file) {
  const absl::StatusOr<std::string> text = ReadFile(file);
  if (!text.ok()) return InFile(file, text.status());
  return ParseJsonObject(*text, file.string());
}

// ---- The byte alphabet ----

// GPT-2 writes each byte as one printable character: printable Latin-1 as itself, the rest as
// U+0100 and on, in order.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    characters_.fill(0);
    bytes_.fill(-1);
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      characters_[byte] = printable ? byte : next++;
      bytes_[characters_[byte]] = static_cast<int16_t>(byte);
    }
  }

  std::string Character(uint8_t byte) const {
    const int character = characters_[byte];
    if (character < 0x80) return {static_cast<char>(character)};
    return {static_cast<char>(0xC0 | character >> 6), static_cast<char>(0x80 | (character & 0x3F))};
  }

  // The bytes that `text` writes, unless it has a character that is not of the alphabet.
  std::optional<std::string> Bytes(std::string_view text) const {
    std::string bytes;
    for (size_t i = 0; i < text.size(); ++i) {
      size_t character = static_cast<uint8_t>(text[i]);
      if (character >= 0xE0) return std::nullopt;
      if (character >= 0xC0 && ++i < text.size()) {
        character = (character & 0x1F) << 6 | (static_cast<uint8_t>(text[i]) & 0x3F);
      }
      if (character >= bytes_.size() || bytes_[character] < 0) return std::nullopt;
      bytes.push_back(static_cast<char>(bytes_[character]));
    }
    return bytes;
  }

 private:
  std::array<int, 256> characters_;
  std::array<int16_t, 0x144> bytes_;  // by character, -1: not of the alphabet
};

// ---- Vocabulary and merges ----

absl::StatusOr<IdsByText> ReadVocabulary(const Json& object) {
  IdsByText ids;
  absl::flat_hash_map<TokenId, std::string> texts;
  for (const auto& [text, value] : object.items()) {
    const absl::StatusOr<TokenId> id = ReadId(value);
    if (!id.ok()) return Fault(absl::StrCat(Quoted(text), ": ", id.status().message()));
    const auto [other, is_new] = texts.emplace(*id, text);
    if (!is_new) {
      return Fault(
          absl::StrCat(Quoted(other->second), " and ", Quoted(text), " have the same id, ", *id));
    }
    ids.emplace(text, *id);
  }
  if (ids.empty()) return Fault("no tokens");
  return ids;
}

void FillVocabulary(const IdsByText& ids, TokenizerSpec& spec) {
  const ByteAlphabet alphabet;
  for (const auto& [text, id] : ids) {
    if (std::optional<std::string> bytes = alphabet.Bytes(text)) {
      spec.vocabulary.entries.push_back({id, *std::move(bytes)});
    } else {
      spec.unreachable.push_back({id, text});
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto entry = ids.find(alphabet.Character(static_cast<uint8_t>(byte)));
    if (entry != ids.end()) spec.vocabulary.byte_tokens[byte] = entry->second;
  }
}

absl::StatusOr<MergeRule> ReadMerge(const IdsByText& ids, const std::string& left,
                                    const std::string& right) {
  const std::string merged = left + right;
  for (const std::string* token : {&left, &right, &merged}) {
    if (!ids.contains(*token)) {
      return Fault(absl::StrCat("the merge of ", Quoted(left), " and ", Quoted(right), " needs ",
                                Quoted(*token), ", which is not in the vocabulary"));
    }
  }
  return MergeRule{ids.at(left), ids.at(right), ids.at(merged)};
}

// A merge on one line: "left right".
absl::StatusOr<MergeRule> ReadMergeLine(const IdsByText& ids, const std::string& line) {
  const std::vector<std::string> parts = absl::StrSplit(line, ' ');
  if (parts.size() != 2 || parts[0].empty() || parts[1].empty()) {
    return Fault(absl::StrCat("a merge is two tokens with a space between, found ", Quoted(line)));
  }
  return ReadMerge(ids, parts[0], parts[1]);
}

absl::StatusOr<MergeRule> ReadMergeEntry(const IdsByText& ids, const Json& entry) {
  if (entry.is_string()) return ReadMergeLine(ids, entry.get_ref<const std::string&>());
  if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_string()) {
    return Fault(absl::StrCat("a merge is \"a b\" or [\"a\", \"b\"], found ", ShowJson(entry)));
  }
  return ReadMerge(ids, entry[0].get_ref<const std::string&>(),
                   entry[1].get_ref<const std::string&>());
}

// ---- tokenizer.json ----

absl::Status CheckModel(const Json& model) {
  if (!model.is_object())
    return Fault(absl::StrCat("model must be an object, found ", ShowJson(model)));
  // Files of old versions leave the type out.
  if (!Member(model, "type").is_null() && TypeOf(model) != "BPE") {
    return Unsupported("model", model, "byte-level \"BPE\"");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json& value = Member(model, key);
    if (!value.is_null() && value != "") {
      return Fault(
          absl::StrCat("model.", key, " is ", ShowJson(value), ", supported: null and \"\""));
    }
  }
  const Json& dropout = Member(model, "dropout");
  if (!dropout.is_null() && dropout != 0) {
    return Fault(absl::StrCat("model.dropout is ", ShowJson(dropout), ", supported: null and 0"));
  }
  bool byte_fallback = false;
  if (auto status = ReadFlag(model, "byte_fallback", byte_fallback); !status.ok()) return status;
  if (byte_fallback) return Fault("model.byte_fallback is true, supported: false (byte-level BPE)");
  if (!Member(model, "vocab").is_object()) {
    return Fault(
        absl::StrCat("model.vocab must be an object, found ", ShowJson(Member(model, "vocab"))));
  }
  if (!Member(model, "merges").is_array()) {
    return Fault(
        absl::StrCat("model.merges must be an array, found ", ShowJson(Member(model, "merges"))));
  }
  return absl::OkStatus();
}

absl::Status ReadModel(const Json& model, IdsByText& ids, TokenizerSpec& spec) {
  if (auto status = CheckModel(model); !status.ok()) return status;
  absl::StatusOr<IdsByText> vocabulary = ReadVocabulary(model["vocab"]);
  if (!vocabulary.ok()) {
    return Fault(absl::StrCat("model.vocab: ", vocabulary.status().message()));
  }
  ids = *std::move(vocabulary);
  FillVocabulary(ids, spec);
  for (const Json& entry : model["merges"]) {
    const absl::StatusOr<MergeRule> rule = ReadMergeEntry(ids, entry);
    if (!rule.ok()) {
      return Fault(absl::StrCat("model.merges[", spec.vocabulary.merges.size(),
                                "]: ", rule.status().message()));
    }
    spec.vocabulary.merges.push_back(*rule);
  }
  const Json& unknown = Member(model, "unk_token");
  if (!unknown.is_null()) {
    const auto id =
        unknown.is_string() ? ids.find(unknown.get_ref<const std::string&>()) : ids.end();
    if (id == ids.end()) {
      return Fault(
          absl::StrCat("model.unk_token is ", ShowJson(unknown), ", which is not in model.vocab"));
    }
    spec.vocabulary.unknown = id->second;
  }
  auto status = ReadFlag(model, "fuse_unk", spec.vocabulary.fuse_unknown);
  status.Update(ReadFlag(model, "ignore_merges", spec.vocabulary.ignore_merges));
  return status;
}

// The only member of a Sequence of one, else `part` itself.
const Json& Unwrapped(const Json& part, const char* members) {
  if (TypeOf(part) != "Sequence") return part;
  const Json& list = Member(part, members);
  return list.is_array() && list.size() == 1 ? list[0] : part;
}

absl::Status ReadPreTokenizer(const Json& root, TokenizerSpec& spec) {
  const Json& part = Unwrapped(Member(root, "pre_tokenizer"), "pretokenizers");
  if (TypeOf(part) != "ByteLevel") {
    return Unsupported("pre_tokenizer", part, "\"ByteLevel\", alone or in a Sequence of one");
  }
  auto status = ReadFlag(part, "add_prefix_space", spec.add_prefix_space);
  status.Update(ReadFlag(part, "use_regex", spec.split_words));
  return status;
}

absl::Status CheckNormalizer(const Json& root) {
  const Json& part = Member(root, "normalizer");
  const bool empty_sequence = TypeOf(part) == "Sequence" && Member(part, "normalizers").empty();
  if (part.is_null() || empty_sequence) return absl::OkStatus();
  return Unsupported("normalizer", part, "null");
}

absl::Status CheckDecoder(const Json& root) {
  const Json& part = Unwrapped(Member(root, "decoder"), "decoders");
  if (part.is_null() || TypeOf(part) == "ByteLevel") return absl::OkStatus();
  return Unsupported("decoder", part, "\"ByteLevel\" and null");
}

absl::StatusOr<AddedToken> ReadAddedToken(const Json& entry) {
  if (!entry.is_object()) return Fault(absl::StrCat("must be an object, found ", ShowJson(entry)));
  const Json& content = Member(entry, "content");
  if (!content.is_string() || content == "") {
    return Fault(
        absl::StrCat("content must be a string that is not empty, found ", ShowJson(content)));
  }
  const absl::StatusOr<TokenId> id = ReadId(Member(entry, "id"));
  if (!id.ok()) return id.status();
  AddedToken token;
  token.id = *id;
  token.content = content.get<std::string>();
  auto status = ReadFlag(entry, "special", token.special);
  token.normalized = !token.special;
  status.Update(ReadFlag(entry, "normalized", token.normalized));
  status.Update(ReadFlag(entry, "lstrip", token.lstrip));
  status.Update(ReadFlag(entry, "rstrip", token.rstrip));
  status.Update(ReadFlag(entry, "single_word", token.single_word));
  if (!status.ok()) return status;
  return token;
}

absl::Status ReadAddedTokens(const Json& root, IdsByText& ids, TokenizerSpec& spec) {
  const Json& list = Member(root, "added_tokens");
  if (list.is_null()) return absl::OkStatus();
  if (!list.is_array()) {
    return Fault(absl::StrCat("added_tokens must be an array, found ", ShowJson(list)));
  }
  absl::flat_hash_map<TokenId, std::string> texts;
  for (const auto& [text, id] : ids) texts.emplace(id, text);
  for (size_t i = 0; i < list.size(); ++i) {
    absl::StatusOr<AddedToken> token = ReadAddedToken(list[i]);
    if (!token.ok()) {
      return Fault(absl::StrCat("added_tokens[", i, "]: ", token.status().message()));
    }
    const std::string& text_of_id = texts.emplace(token->id, token->content).first->second;
    const TokenId id_of_text = ids.emplace(token->content, token->id).first->second;
    const std::string claim =
        absl::StrCat("added_tokens[", i, "]: ", Quoted(token->content), " has id ", token->id);
    if (id_of_text != token->id) {
      return Fault(absl::StrCat(claim, ", but the vocabulary gives it id ", id_of_text));
    }
    if (text_of_id != token->content) {
      return Fault(absl::StrCat(claim, ", which is that of ", Quoted(text_of_id)));
    }
    spec.added_tokens.push_back(*std::move(token));
  }
  return absl::OkStatus();
}

// ---- The post-processor ----

// TemplateProcessing's "single": the tokens before and after the text, "$A".
absl::Status ReadTemplate(const Json& part, const IdsByText& ids, TokenizerSpec& spec) {
  absl::flat_hash_map<TokenId, bool> known;
  for (const auto& [text, id] : ids) known.emplace(id, true);
  std::vector<TokenId>* tokens = &spec.prefix;
  for (const Json& piece : Member(part, "single")) {
    if (!Member(piece, "Sequence").is_null() && tokens == &spec.prefix) {
      tokens = &spec.suffix;
      continue;
    }
    const Json& name = Member(Member(piece, "SpecialToken"), "id");
    if (!name.is_string()) {
      return Fault("single must be a list of SpecialTokens with one Sequence among them");
    }
    const Json& special =
        Member(Member(part, "special_tokens"), name.get_ref<const std::string&>().c_str());
    const Json& special_ids = Member(special, "ids");
    if (!special_ids.is_array()) {
      return Fault(absl::StrCat("special_tokens lacks the ids of ", ShowJson(name)));
    }
    for (const Json& value : special_ids) {
      const absl::StatusOr<TokenId> id = ReadId(value);
      if (!id.ok()) return id.status();
      if (!known.contains(*id)) {
        return Fault(absl::StrCat("special_tokens gives ", ShowJson(name), " the id ", *id,
                                  ", which no token has"));
      }
      tokens->push_back(*id);
    }
  }
  if (tokens == &spec.prefix) return Fault("single has no Sequence");
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const Json& part, const IdsByText& ids, TokenizerSpec& spec) {
  // ByteLevel changes offsets only.
  if (part.is_null() || TypeOf(part) == "ByteLevel") return absl::OkStatus();
  if (TypeOf(part) == "TemplateProcessing" && spec.prefix.empty() && spec.suffix.empty()) {
    const absl::Status status = ReadTemplate(part, ids, spec);
    return status.ok() ? status : Fault(absl::StrCat("post_processor.", status.message()));
  }
  if (TypeOf(part) == "Sequence") {
    for (const Json& member : Member(part, "processors")) {
      if (TypeOf(member) == "Sequence")
        return Unsupported("post_processor", part, "no Sequence in a Sequence");
      if (auto status = ReadPostProcessor(member, ids, spec); !status.ok()) return status;
    }
    return absl::OkStatus();
  }
  return Unsupported("post_processor", part,
                     "null, \"ByteLevel\", one \"TemplateProcessing\", or a Sequence of these");
}

absl::Status ReadTokenizerJson(const Json& root, IdsByText& ids, TokenizerSpec& spec) {
  if (auto status = ReadModel(Member(root, "model"), ids, spec); !status.ok()) return status;
  if (auto status = CheckNormalizer(root); !status.ok()) return status;
  if (auto status = ReadPreTokenizer(root, spec); !status.ok()) return status;
  if (auto status = CheckDecoder(root); !status.ok()) return status;
  if (auto status = ReadAddedTokens(root, ids, spec); !status.ok()) return status;
  return ReadPostProcessor(Member(root, "post_processor"), ids, spec);
}

// ---- vocab.json and merges.txt ----

absl::Status ReadMergesText(const std::string& text, const IdsByText& ids, TokenizerSpec& spec) {
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    absl::ConsumeSuffix(&line, "\r");
    if (line.empty() || absl::StartsWith(line, "#version")) continue;
    const absl::StatusOr<MergeRule> rule = ReadMergeLine(ids, std::string(line));
    if (!rule.ok()) {
      return Fault(absl::StrCat("line ", line_number, ": ", rule.status().message()));
    }
    spec.vocabulary.merges.push_back(*rule);
  }
  return absl::OkStatus();
}

absl::Status ReadVocabularyAndMerges(const std::filesystem::path& vocab_file,
                                     const std::filesystem::path& merges_file, IdsByText& ids,
                                     TokenizerSpec& spec) {
  const absl::StatusOr<Json> json = ReadJson(vocab_file);
  if (!json.ok()) return json.status();
  absl::StatusOr<IdsByText> vocabulary = ReadVocabulary(*json);
  if (!vocabulary.ok()) return InFile(vocab_file, vocabulary.status());
  ids = *std::move(vocabulary);
  FillVocabulary(ids, spec);
  const absl::StatusOr<std::string> merges = ReadFile(merges_file);
  if (!merges.ok()) return InFile(merges_file, merges.status());
  return InFile(merges_file, ReadMergesText(*merges, ids, spec));
}

// ---- The end of text ----

// What tokenizer_config.json says of the end-of-text token, empty when nothing.
absl::StatusOr<std::string> ReadEosToken(const Json& config) {
  const Json& value = Member(config, "eos_token");
  if (value.is_null()) return std::string();
  const Json& content = value.is_object() ? Member(value, "content") : value;
  if (!content.is_string() || content == "") {
    return Fault(absl::StrCat("eos_token must be a string, or an object with content, found ",
                              ShowJson(value)));
  }
  return content.get<std::string>();
}

// Found in the text and left out of decoded text, also where the files do not say so.
void MakeSpecial(TokenId id, const std::string& text, TokenizerSpec& spec) {
  for (AddedToken& token : spec.added_tokens) {
    if (token.id == id) {
      token.special = true;
      return;
    }
  }
  spec.added_tokens.push_back({.id = id, .content = text, .special = true});
}

absl::Status ReadConfig(const Json& config, bool has_tokenizer_json, const IdsByText& ids,
                        TokenizerSpec& spec) {
  if (!has_tokenizer_json) {
    auto status = ReadFlag(config, "add_prefix_space", spec.add_prefix_space);
    if (!status.ok()) return status;
  }
  const absl::StatusOr<std::string> eos_token = ReadEosToken(config);
  if (!eos_token.ok()) return eos_token.status();
  if (eos_token->empty()) return absl::OkStatus();
  const auto id = ids.find(*eos_token);
  if (id == ids.end()) {
    return Fault(absl::StrCat("eos_token is ", Quoted(*eos_token), ", which the vocabulary lacks"));
  }
  spec.eos_token_id = id->second;
  MakeSpecial(id->second, *eos_token, spec);
  return absl::OkStatus();
}

bool Exists(const std::filesystem::path& file) {
  std::error_code error;
  return std::filesystem::exists(file, error);
}

}  // namespace

absl::StatusOr<TokenizerSpec> ReadTokenizerFiles(const std::filesystem::path& folder) {
  const std::filesystem::path tokenizer_file = folder / "tokenizer.json";
  const std::filesystem::path vocab_file = folder / "vocab.json";
  const std::filesystem::path merges_file = folder / "merges.txt";
  const std::filesystem::path config_file = folder / "tokenizer_config.json";

  TokenizerSpec spec;
  IdsByText ids;
  const bool has_tokenizer_json = Exists(tokenizer_file);
  if (has_tokenizer_json) {
    const absl::StatusOr<Json> json = ReadJson(tokenizer_file);
    if (!json.ok()) return json.status();
    const absl::Status status = ReadTokenizerJson(*json, ids, spec);
    if (!status.ok()) return InFile(tokenizer_file, status);
  } else if (Exists(vocab_file) && Exists(merges_file)) {
    const absl::Status status = ReadVocabularyAndMerges(vocab_file, merges_file, ids, spec);
    if (!status.ok()) return status;
  } else if (Exists(vocab_file) || Exists(merges_file)) {
    const bool lacks_merges = Exists(vocab_file);
    return InFile(lacks_merges ? merges_file : vocab_file,
                  Fault(absl::StrCat("missing, but ", lacks_merges ? "vocab.json" : "merges.txt",
                                     " is there: they are used together")));
  } else {
    return absl::NotFoundError(
        absl::StrCat(folder.string(),
                     " has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt"));
  }
  if (Exists(config_file)) {
    const absl::StatusOr<Json> config = ReadJson(config_file);
    if (!config.ok()) return config.status();
    const absl::Status status = ReadConfig(*config, has_tokenizer_json, ids, spec);
    if (!status.ok()) return InFile(config_file, status);
  }
  const auto end_of_text = ids.find(kEndOfText);
  if (end_of_text != ids.end() && (!spec.eos_token_id || !has_tokenizer_json)) {
    if (!spec.eos_token_id) spec.eos_token_id = end_of_text->second;
    MakeSpecial(end_of_text->second, kEndOfText, spec);
  }
  return spec;
}

}  // namespace ddl
