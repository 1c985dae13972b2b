#include "model/tokenizer/tokenizer_files.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "model/tokenizer/companion_files.h"
#include "model/tokenizer/json_fields.h"
#include "model/tokenizer/tiktoken.h"
#include "model/tokenizer/tokenizer_json.h"

namespace ddl {
namespace {

constexpr char kEndOfText[] = "<|endoftext|>";
constexpr char kLlama3EndOfText[] = "<|end_of_text|>";

absl::Status ReadMergesText(const std::string& text, TokenizerSpec& spec) {
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    absl::ConsumeSuffix(&line, "\r");
    if (line.empty() || absl::StartsWith(line, "#version")) continue;
    auto status = AddMergeLine(std::string(line), spec);
    if (!status.ok()) return At(absl::StrCat("line ", line_number), status);
  }
  return absl::OkStatus();
}

// GPT-2's two files, under either pair of names.
absl::Status ReadVocabularyAndMerges(const std::filesystem::path& vocab_file,
                                     const std::filesystem::path& merges_file,
                                     TokenizerSpec& spec) {
  for (const auto& [file, other] :
       {std::pair(vocab_file, merges_file), std::pair(merges_file, vocab_file)}) {
    if (!Exists(file)) {
      return InFile(file, Fault(absl::StrCat("missing, but ", other.filename().string(),
                                             " is there: they are used together")));
    }
  }
  const absl::StatusOr<nlohmann::json> json = ReadJsonFile(vocab_file);
  if (!json.ok()) return json.status();
  if (auto status = ReadVocabulary(*json, spec); !status.ok()) return InFile(vocab_file, status);
  const absl::StatusOr<std::string> merges = ReadTextFile(merges_file);
  if (!merges.ok()) return InFile(merges_file, merges.status());
  if (auto status = ReadMergesText(*merges, spec); !status.ok()) return InFile(merges_file, status);
  const std::filesystem::path config_file = vocab_file.parent_path() / "tokenizer_config.json";
  bool add_prefix_space = false;
  if (Exists(config_file)) {
    const absl::StatusOr<nlohmann::json> config = ReadJsonFile(config_file);
    if (!config.ok()) return config.status();
    auto status = ReadFlag(*config, "add_prefix_space", add_prefix_space);
    if (!status.ok()) return InFile(config_file, status);
  }
  spec.source =
      absl::StrCat(vocab_file.filename().string(), " and ", merges_file.filename().string());
  return UseGpt2Parts(add_prefix_space, spec);
}

// The folder's files that end in .tiktoken, in order.
std::vector<std::filesystem::path> TiktokenFiles(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".tiktoken") files.push_back(entry->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

absl::Status ReadTiktokenFile(const std::filesystem::path& file, const std::string& name,
                              TokenizerSpec& spec) {
  const absl::StatusOr<std::string> text = ReadTextFile(file);
  if (!text.ok()) return InFile(file, text.status());
  spec.source = file.filename().string();
  return InFile(file, ReadTiktoken(name, *text, spec));
}

absl::Status ReadSentencePieceOrTiktoken(const std::filesystem::path& file, TokenizerSpec& spec) {
  const absl::StatusOr<std::string> text = ReadTextFile(file);
  if (!text.ok()) return InFile(file, text.status());
  if (!LooksLikeTiktoken(*text)) {
    return InFile(file, Fault("SentencePiece models are not supported: save the tokenizer as "
                              "tokenizer.json, which transformers do with "
                              "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"));
  }
  if (auto status = ReadTiktokenFile(file, "llama3", spec); !status.ok()) return status;
  spec.eos_token_id = spec.ids.at(kLlama3EndOfText);
  return absl::OkStatus();
}

// The vocabulary, from the first of the files that hold one.
absl::Status ReadMainFiles(const std::filesystem::path& folder, TokenizerSpec& spec) {
  const std::filesystem::path tokenizer_json = folder / "tokenizer.json";
  if (Exists(tokenizer_json)) {
    const absl::StatusOr<nlohmann::json> json = ReadJsonFile(tokenizer_json);
    if (!json.ok()) return json.status();
    spec.source = tokenizer_json.filename().string();
    return InFile(tokenizer_json, ReadTokenizerJson(*json, spec));
  }
  struct Pair {
    const char* vocab;
    const char* merges;
  };
  for (const auto& [vocab, merges] :
       {Pair{"vocab.json", "merges.txt"}, Pair{"encoder.json", "vocab.bpe"}}) {
    if (!Exists(folder / vocab) && !Exists(folder / merges)) continue;
    return ReadVocabularyAndMerges(folder / vocab, folder / merges, spec);
  }
  const std::vector<std::filesystem::path> files = TiktokenFiles(folder);
  if (files.size() > 1) {
    return Fault(absl::StrCat(folder.string(), " has ", files.size(), " .tiktoken files (",
                              files[0].filename().string(), ", ", files[1].filename().string(),
                              "), allowed is one"));
  }
  if (!files.empty()) return ReadTiktokenFile(files[0], files[0].stem().string(), spec);
  if (Exists(folder / "tokenizer.model")) {
    return ReadSentencePieceOrTiktoken(folder / "tokenizer.model", spec);
  }
  return absl::NotFoundError(absl::StrCat(
      folder.string(), " has no tokenizer: neither tokenizer.json, nor vocab.json and ",
      "merges.txt, nor encoder.json and vocab.bpe, nor a .tiktoken file"));
}

}  // namespace

absl::StatusOr<TokenizerSpec> ReadTokenizerFiles(const std::filesystem::path& folder) {
  TokenizerSpec spec;
  if (auto status = ReadMainFiles(folder, spec); !status.ok()) return status;
  const bool has_tokenizer_json = spec.source == "tokenizer.json";
  auto status = ReadCompanionFiles(folder, has_tokenizer_json, spec);
  if (!status.ok()) return status;
  const auto end_of_text = spec.ids.find(kEndOfText);
  if (end_of_text != spec.ids.end() && (!spec.eos_token_id || !has_tokenizer_json)) {
    if (!spec.eos_token_id) spec.eos_token_id = end_of_text->second;
    AddedToken& token = spec.added_tokens[end_of_text->second];
    token.id = end_of_text->second;
    token.content = kEndOfText;
    token.special = true;
  }
  if (spec.eos_source.empty()) spec.eos_source = spec.source;
  return spec;
}

}  // namespace ddl
