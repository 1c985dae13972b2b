#include "model/tokenizer/tokenizer_json.h"

#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/strict_json.h"
#include "model/tokenizer/json_fields.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

using Json = nlohmann::json;

absl::Status Unsupported(const Json& part, absl::string_view supported) {
  const std::string type = TypeOf(part);
  return Fault(absl::StrCat("found ", type.empty() ? ShowJson(part) : Quoted(type),
                            ", supported are ", supported));
}

// Calls `read` with each part of a pipeline that is not a Sequence, in order. `members` is what a
// Sequence calls its list.
absl::Status ForEachPart(const Json& part, const char* members, const std::string& place,
                         absl::FunctionRef<absl::Status(const Json&)> read) {
  if (TypeOf(part) != "Sequence") return At(place, read(part));
  const Json& list = Member(part, members);
  if (!list.is_array()) {
    return At(place, Fault(absl::StrCat(members, " must be an array, found ", ShowJson(list))));
  }
  for (size_t i = 0; i < list.size(); ++i) {
    auto status =
        ForEachPart(list[i], members, absl::StrCat(place, ".", members, "[", i, "]"), read);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<char32_t> ReadCharacter(const Json& part, const char* key) {
  const absl::StatusOr<std::string> text = ReadString(part, key);
  if (!text.ok()) return text.status();
  size_t end = 0;
  const char32_t character = text->empty() ? 0 : TakeCharacter(*text, end);
  if (text->empty() || end != text->size()) {
    return Fault(absl::StrCat(key, " must be one character, found ", Quoted(*text)));
  }
  return character;
}

absl::StatusOr<size_t> ReadCount(const Json& part, const char* key) {
  const Json& value = Member(part, key);
  constexpr int kMax = 1000;
  if (!value.is_number_integer() || value < 0 || value > kMax) {
    return Fault(
        absl::StrCat(key, " must be a whole number from 0 to ", kMax, ", found ", ShowJson(value)));
  }
  return value.get<size_t>();
}

// {"Regex": "..."} or {"String": "..."}
absl::StatusOr<Regex> ReadPattern(const Json& part) {
  const Json& pattern = Member(part, "pattern");
  for (const char* kind : {"Regex", "String"}) {
    const Json& value = Member(pattern, kind);
    if (!value.is_string()) continue;
    const auto& text = value.get_ref<const std::string&>();
    auto regex = *kind == 'R' ? Regex::FromOniguruma(text) : Regex::FromText(text);
    if (regex.ok()) return regex;
    return At(absl::StrCat("pattern ", Quoted(text)), regex.status());
  }
  return Fault(absl::StrCat("pattern must be {\"Regex\": ...} or {\"String\": ...}, found ",
                            ShowJson(pattern)));
}

absl::StatusOr<SplitBehavior> ReadBehavior(const Json& part) {
  const Json& value = Member(part, "behavior");
  if (value == "Removed") return SplitBehavior::kRemoved;
  if (value == "Isolated") return SplitBehavior::kIsolated;
  if (value == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (value == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (value == "Contiguous") return SplitBehavior::kContiguous;
  return Fault(absl::StrCat("behavior is ", ShowJson(value),
                            ", allowed are Removed, Isolated, MergedWithPrevious, MergedWithNext "
                            "and Contiguous"));
}

// ---- model ----

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

// ---- normalizer ----

constexpr char kNormalizers[] =
    R"("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Prepend", "Replace", )"
    R"("ByteLevel" and Sequences of these)";

absl::StatusOr<Normalizer::Step> ReadNormalizerPart(const Json& part) {
  const std::string type = TypeOf(part);
  if (type == "NFC") return UnicodeForm::kNfc;
  if (type == "NFD") return UnicodeForm::kNfd;
  if (type == "NFKC") return UnicodeForm::kNfkc;
  if (type == "NFKD") return UnicodeForm::kNfkd;
  if (type == "Lowercase") return Normalizer::Lowercase();
  if (type == "StripAccents") return Normalizer::StripAccents();
  if (type == "ByteLevel") return Normalizer::ByteLevel();
  if (type == "Strip") {
    Normalizer::Strip strip;
    absl::Status status = ReadFlag(part, "strip_left", strip.left);
    status.Update(ReadFlag(part, "strip_right", strip.right));
    if (!status.ok()) return status;
    return strip;
  }
  if (type == "Prepend") {
    absl::StatusOr<std::string> text = ReadString(part, "prepend");
    if (!text.ok()) return text.status();
    return Normalizer::Prepend{*std::move(text)};
  }
  if (type == "Replace") {
    absl::StatusOr<Regex> pattern = ReadPattern(part);
    if (!pattern.ok()) return pattern.status();
    absl::StatusOr<std::string> content = ReadString(part, "content");
    if (!content.ok()) return content.status();
    return Normalizer::Replace{*std::move(pattern), *std::move(content)};
  }
  return Unsupported(part, kNormalizers);
}

absl::Status ReadNormalizer(const Json& root, TokenizerSpec& spec) {
  const Json& part = Member(root, "normalizer");
  if (part.is_null()) return absl::OkStatus();
  std::vector<Normalizer::Step> steps;
  auto status = ForEachPart(part, "normalizers", "normalizer", [&](const Json& member) {
    absl::StatusOr<Normalizer::Step> step = ReadNormalizerPart(member);
    if (step.ok()) steps.push_back(*std::move(step));
    return step.status();
  });
  spec.normalizer = Normalizer(std::move(steps));
  return status;
}

// ---- pre_tokenizer ----

constexpr char kPreTokenizers[] =
    R"("ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", )"
    R"("Metaspace", "CharDelimiterSplit", "BertPreTokenizer" and Sequences of these)";

absl::StatusOr<PreTokenizer::Step> ReadByteLevel(const Json& part) {
  PreTokenizer::ByteLevel byte_level;
  bool use_regex = true;
  absl::Status status = ReadFlag(part, "add_prefix_space", byte_level.add_prefix_space);
  status.Update(ReadFlag(part, "use_regex", use_regex));
  if (!status.ok()) return status;
  if (use_regex) {
    absl::StatusOr<Regex> pattern = Regex::FromOniguruma(PreTokenizer::kGpt2Pattern);
    if (!pattern.ok()) return pattern.status();
    byte_level.pattern = *std::move(pattern);
  }
  return byte_level;
}

absl::StatusOr<PreTokenizer::Step> ReadSplit(const Json& part) {
  absl::StatusOr<Regex> pattern = ReadPattern(part);
  if (!pattern.ok()) return pattern.status();
  const absl::StatusOr<SplitBehavior> behavior = ReadBehavior(part);
  if (!behavior.ok()) return behavior.status();
  PreTokenizer::Split split{*std::move(pattern), *behavior};
  if (absl::Status status = ReadFlag(part, "invert", split.invert); !status.ok()) return status;
  return split;
}

// What the `prepend_scheme` of a Metaspace says; old files say `add_prefix_space`.
absl::StatusOr<PreTokenizer::Metaspace::Prepend> ReadPrependScheme(const Json& part) {
  using Prepend = PreTokenizer::Metaspace::Prepend;
  const Json& scheme = Member(part, "prepend_scheme");
  bool add_prefix_space = true;
  if (auto status = ReadFlag(part, "add_prefix_space", add_prefix_space); !status.ok()) {
    return status;
  }
  if (scheme == "never" || (scheme.is_null() && !add_prefix_space)) return Prepend::kNever;
  if (scheme == "first") return Prepend::kFirst;
  if (scheme == "always" || scheme.is_null()) return Prepend::kAlways;
  return Fault(absl::StrCat("prepend_scheme is ", ShowJson(scheme),
                            ", allowed are \"always\", \"first\" and \"never\""));
}

absl::StatusOr<PreTokenizer::Step> ReadMetaspace(const Json& part) {
  PreTokenizer::Metaspace metaspace;
  const absl::StatusOr<char32_t> replacement = ReadCharacter(part, "replacement");
  if (!replacement.ok()) return replacement.status();
  AppendUtf8(*replacement, metaspace.replacement);
  const auto prepend = ReadPrependScheme(part);
  if (!prepend.ok()) return prepend.status();
  metaspace.prepend = *prepend;
  if (auto status = ReadFlag(part, "split", metaspace.split); !status.ok()) return status;
  return metaspace;
}

absl::Status ReadPreTokenizerPart(const Json& part, std::vector<PreTokenizer::Step>& steps) {
  const std::string type = TypeOf(part);
  absl::StatusOr<PreTokenizer::Step> step = PreTokenizer::WhitespaceSplit();
  if (type == "ByteLevel") {
    step = ReadByteLevel(part);
  } else if (type == "Split") {
    step = ReadSplit(part);
  } else if (type == "Metaspace") {
    step = ReadMetaspace(part);
  } else if (type == "Digits") {
    PreTokenizer::Digits digits;
    const absl::Status status = ReadFlag(part, "individual_digits", digits.individual);
    if (!status.ok()) return status;
    step = digits;
  } else if (type == "Punctuation") {
    PreTokenizer::Punctuation punctuation;
    if (!Member(part, "behavior").is_null()) {
      const absl::StatusOr<SplitBehavior> behavior = ReadBehavior(part);
      if (!behavior.ok()) return behavior.status();
      punctuation.behavior = *behavior;
    }
    step = punctuation;
  } else if (type == "Whitespace") {
    absl::StatusOr<Regex> pattern = Regex::WordsAndSymbols();
    if (!pattern.ok()) return pattern.status();
    step = PreTokenizer::Split{*std::move(pattern), SplitBehavior::kRemoved, /*invert=*/true};
  } else if (type == "WhitespaceSplit") {
    step = PreTokenizer::WhitespaceSplit();
  } else if (type == "CharDelimiterSplit") {
    const absl::StatusOr<char32_t> delimiter = ReadCharacter(part, "delimiter");
    if (!delimiter.ok()) return delimiter.status();
    step = PreTokenizer::CharDelimiterSplit{*delimiter};
  } else if (type == "BertPreTokenizer") {
    steps.emplace_back(PreTokenizer::WhitespaceSplit());
    step = PreTokenizer::Punctuation();
  } else {
    return Unsupported(part, kPreTokenizers);
  }
  if (step.ok()) steps.push_back(*std::move(step));
  return step.status();
}

absl::Status ReadPreTokenizer(const Json& root, TokenizerSpec& spec) {
  const Json& part = Member(root, "pre_tokenizer");
  if (part.is_null()) return absl::OkStatus();
  std::vector<PreTokenizer::Step> steps;
  auto status = ForEachPart(part, "pretokenizers", "pre_tokenizer", [&](const Json& member) {
    return ReadPreTokenizerPart(member, steps);
  });
  spec.pre_tokenizer = PreTokenizer(std::move(steps));
  return status;
}

// ---- post_processor ----

constexpr char kPostProcessors[] =
    R"("ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing" and Sequences )"
    R"(of these)";

absl::Status CheckHasToken(TokenId id, const std::string& name, const TokenizerSpec& spec) {
  if (spec.texts.contains(id)) return absl::OkStatus();
  return Fault(absl::StrCat("gives ", Quoted(name), " the id ", id, ", which no token has"));
}

// The ids of a special token that a template names.
absl::StatusOr<std::vector<TokenId>> ReadTemplateToken(const Json& part, const std::string& name,
                                                       const TokenizerSpec& spec) {
  const Json& tokens = Member(part, "special_tokens");
  const Json& list = Member(Member(tokens, name.c_str()), "ids");
  if (!list.is_array()) {
    return Fault(absl::StrCat("special_tokens lacks the ids of ", Quoted(name)));
  }
  std::vector<TokenId> ids;
  for (const Json& value : list) {
    const absl::StatusOr<TokenId> id = ReadId(value);
    if (!id.ok()) return At("special_tokens", id.status());
    const absl::Status status = At("special_tokens", CheckHasToken(*id, name, spec));
    if (!status.ok()) return status;
    ids.push_back(*id);
  }
  return ids;
}

absl::StatusOr<PostProcessor::Step> ReadTemplate(const Json& part, const TokenizerSpec& spec) {
  const Json& single = Member(part, "single");
  if (!single.is_array()) {
    return Fault(absl::StrCat("single must be an array, found ", ShowJson(single)));
  }
  PostProcessor::Surround surround;
  bool has_text = false;
  for (const Json& piece : single) {
    const Json& sequence = Member(piece, "Sequence");
    if (sequence.is_object() && Member(sequence, "id") == "A" && !has_text) {
      has_text = true;
      continue;
    }
    const Json& name = Member(Member(piece, "SpecialToken"), "id");
    if (!name.is_string()) {
      return Fault(absl::StrCat("single must be special tokens around one Sequence \"A\", found ",
                                ShowJson(piece)));
    }
    const auto ids = ReadTemplateToken(part, name.get_ref<const std::string&>(), spec);
    if (!ids.ok()) return ids.status();
    std::vector<TokenId>& side = has_text ? surround.after : surround.before;
    side.insert(side.end(), ids->begin(), ids->end());
  }
  if (!has_text) return Fault("single has no Sequence \"A\"");
  return surround;
}

// ["<s>", 0]
absl::StatusOr<TokenId> ReadNamedToken(const Json& part, const char* key,
                                       const TokenizerSpec& spec) {
  const Json& pair = Member(part, key);
  if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string()) {
    return Fault(absl::StrCat(key, " must be [\"token\", id], found ", ShowJson(pair)));
  }
  const absl::StatusOr<TokenId> id = ReadId(pair[1]);
  if (!id.ok()) return At(key, id.status());
  const absl::Status status = At(key, CheckHasToken(*id, pair[0].get<std::string>(), spec));
  if (!status.ok()) return status;
  return *id;
}

// Roberta's has what Bert's has, and trims offsets as ByteLevel does.
absl::Status ReadClsAndSep(const Json& part, const TokenizerSpec& spec,
                           std::vector<PostProcessor::Step>& steps) {
  const absl::StatusOr<TokenId> cls = ReadNamedToken(part, "cls", spec);
  if (!cls.ok()) return cls.status();
  const absl::StatusOr<TokenId> sep = ReadNamedToken(part, "sep", spec);
  if (!sep.ok()) return sep.status();
  steps.emplace_back(PostProcessor::Surround{{*cls}, {*sep}});
  return absl::OkStatus();
}

absl::Status ReadTrimOffsets(const Json& part, std::vector<PostProcessor::Step>& steps) {
  PostProcessor::TrimOffsets trim{.add_prefix_space = true};
  bool trims = true;
  absl::Status status = ReadFlag(part, "add_prefix_space", trim.add_prefix_space);
  status.Update(ReadFlag(part, "trim_offsets", trims));
  if (status.ok() && trims) steps.emplace_back(trim);
  return status;
}

absl::Status ReadPostProcessorPart(const Json& part, const TokenizerSpec& spec,
                                   std::vector<PostProcessor::Step>& steps) {
  const std::string type = TypeOf(part);
  if (type == "ByteLevel") return ReadTrimOffsets(part, steps);
  if (type == "BertProcessing") return ReadClsAndSep(part, spec, steps);
  if (type == "RobertaProcessing") {
    absl::Status status = ReadTrimOffsets(part, steps);
    status.Update(ReadClsAndSep(part, spec, steps));
    return status;
  }
  if (type == "TemplateProcessing") {
    absl::StatusOr<PostProcessor::Step> step = ReadTemplate(part, spec);
    if (step.ok()) steps.push_back(*std::move(step));
    return step.status();
  }
  return Unsupported(part, kPostProcessors);
}

absl::Status ReadPostProcessor(const Json& root, TokenizerSpec& spec) {
  const Json& part = Member(root, "post_processor");
  if (part.is_null()) return absl::OkStatus();
  std::vector<PostProcessor::Step> steps;
  auto status = ForEachPart(part, "processors", "post_processor", [&](const Json& member) {
    return ReadPostProcessorPart(member, spec, steps);
  });
  spec.post_processor = PostProcessor(std::move(steps));
  return status;
}

// ---- decoder ----

constexpr char kDecoders[] =
    R"("ByteLevel", "ByteFallback", "Metaspace", "BPEDecoder", "Fuse", "Replace", "Strip" and )"
    R"(Sequences of these)";

// Collects the decoders of a pipeline, which must come in TokenDecoder's order.
class DecoderReader {
 public:
  absl::Status Read(const Json& part) {
    const std::string type = TypeOf(part);
    if (type == "Fuse") {
      is_one_text_ = true;
      return absl::OkStatus();
    }
    if (type == "Strip") return ReadStrip(part);
    if (type == "Replace") return ReadReplace(part);
    absl::StatusOr<TokenDecoder::Join> join = ReadJoin(part);
    if (!join.ok()) return join.status();
    if (join_ || is_one_text_) return OutOfOrder(type);
    join_ = *std::move(join);
    is_one_text_ = type == "ByteLevel";
    return absl::OkStatus();
  }

  TokenDecoder Take() && {
    return TokenDecoder(std::move(token_steps_), join_ ? *std::move(join_) : TokenDecoder::Join(),
                        std::move(text_steps_));
  }

 private:
  static absl::Status OutOfOrder(const std::string& type) {
    return Fault(absl::StrCat("found ", Quoted(type),
                              " after decoders that joined the tokens; supported are \"Replace\" "
                              "and \"Strip\" of tokens, then one of \"ByteLevel\", "
                              "\"ByteFallback\", \"Metaspace\" and \"BPEDecoder\", then \"Fuse\" "
                              "and \"Strip\""));
  }

  static absl::StatusOr<TokenDecoder::Join> ReadJoin(const Json& part) {
    const std::string type = TypeOf(part);
    if (type == "ByteLevel") return TokenDecoder::ByteLevel();
    if (type == "ByteFallback") return TokenDecoder::ByteFallback();
    if (type == "Metaspace") {
      const absl::StatusOr<char32_t> replacement = ReadCharacter(part, "replacement");
      if (!replacement.ok()) return replacement.status();
      const auto prepend = ReadPrependScheme(part);
      if (!prepend.ok()) return prepend.status();
      TokenDecoder::Metaspace metaspace;
      AppendUtf8(*replacement, metaspace.replacement);
      metaspace.keeps_first = *prepend == PreTokenizer::Metaspace::Prepend::kNever;
      return metaspace;
    }
    if (type == "BPEDecoder") {
      absl::StatusOr<std::string> suffix = ReadString(part, "suffix");
      if (!suffix.ok()) return suffix.status();
      return TokenDecoder::WordSuffix{*std::move(suffix)};
    }
    return Unsupported(part, kDecoders);
  }

  absl::Status ReadStrip(const Json& part) {
    const absl::StatusOr<char32_t> content = ReadCharacter(part, "content");
    if (!content.ok()) return content.status();
    const absl::StatusOr<size_t> start = ReadCount(part, "start");
    if (!start.ok()) return start.status();
    const absl::StatusOr<size_t> stop = ReadCount(part, "stop");
    if (!stop.ok()) return stop.status();
    const TokenDecoder::Strip strip{*content, *start, *stop};
    if (is_one_text_) {
      text_steps_.push_back(strip);
    } else if (join_) {
      return OutOfOrder("Strip");
    } else {
      token_steps_.emplace_back(strip);
    }
    return absl::OkStatus();
  }

  absl::Status ReadReplace(const Json& part) {
    if (join_ || is_one_text_) return OutOfOrder("Replace");
    absl::StatusOr<Regex> pattern = ReadPattern(part);
    if (!pattern.ok()) return pattern.status();
    absl::StatusOr<std::string> content = ReadString(part, "content");
    if (!content.ok()) return content.status();
    token_steps_.emplace_back(TokenDecoder::Replace{*std::move(pattern), *std::move(content)});
    return absl::OkStatus();
  }

  std::vector<TokenDecoder::TokenStep> token_steps_;
  std::optional<TokenDecoder::Join> join_;
  bool is_one_text_ = false;
  std::vector<TokenDecoder::Strip> text_steps_;
};

absl::Status ReadDecoder(const Json& root, TokenizerSpec& spec) {
  const Json& part = Member(root, "decoder");
  if (part.is_null()) {
    spec.decoder = TokenDecoder({}, TokenDecoder::SpaceSeparated(), {});
    return absl::OkStatus();
  }
  DecoderReader reader;
  auto status = ForEachPart(part, "decoders", "decoder",
                            [&](const Json& member) { return reader.Read(member); });
  spec.decoder = std::move(reader).Take();
  return status;
}

// ---- added_tokens ----

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

absl::Status AddMerge(const std::string& left, const std::string& right, TokenizerSpec& spec) {
  const size_t prefix = spec.vocabulary.continuing_prefix.size();
  const std::string merged = left + (right.size() < prefix ? "" : right.substr(prefix));
  std::array<TokenId, 3> ids{};
  size_t count = 0;
  for (const std::string* token : {&left, &right, &merged}) {
    const auto id = spec.ids.find(*token);
    if (id == spec.ids.end()) {
      return Fault(absl::StrCat("the merge of ", Quoted(left), " and ", Quoted(right), " needs ",
                                Quoted(*token), ", which is not in the vocabulary"));
    }
    ids[count++] = id->second;
  }
  const auto rank = static_cast<int32_t>(spec.vocabulary.merges.size());
  spec.vocabulary.merges.push_back({ids[0], ids[1], ids[2], rank});
  return absl::OkStatus();
}

absl::Status AddMergeLine(const std::string& line, TokenizerSpec& spec) {
  const std::vector<std::string> parts = absl::StrSplit(line, ' ');
  if (parts.size() != 2 || parts[0].empty() || parts[1].empty()) {
    return Fault(absl::StrCat("a merge is two tokens with a space between, found ", Quoted(line)));
  }
  return AddMerge(parts[0], parts[1], spec);
}

absl::Status AddToken(AddedToken token, TokenizerSpec& spec) {
  const TokenId id_of_text = spec.ids.emplace(token.content, token.id).first->second;
  const std::string& text_of_id = spec.texts.emplace(token.id, token.content).first->second;
  const std::string claim = absl::StrCat(Quoted(token.content), " has id ", token.id);
  if (text_of_id != token.content) {
    return Fault(absl::StrCat(claim, ", which is that of ", Quoted(text_of_id)));
  }
  if (id_of_text != token.id) {
    return Fault(absl::StrCat(claim, ", but the vocabulary gives it id ", id_of_text));
  }
  spec.added_tokens.insert_or_assign(token.id, std::move(token));
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

absl::Status UseGpt2Parts(bool add_prefix_space, TokenizerSpec& spec) {
  absl::StatusOr<Regex> pattern = Regex::FromOniguruma(PreTokenizer::kGpt2Pattern);
  if (!pattern.ok()) return pattern.status();
  std::vector<PreTokenizer::Step> steps;
  steps.emplace_back(PreTokenizer::ByteLevel{add_prefix_space, *std::move(pattern)});
  spec.pre_tokenizer = PreTokenizer(std::move(steps));
  spec.decoder = TokenDecoder({}, TokenDecoder::ByteLevel(), {});
  return absl::OkStatus();
}

absl::Status UseByteLevelParts(const std::string& pattern, TokenizerSpec& spec) {
  absl::StatusOr<Regex> words = Regex::FromOniguruma(pattern);
  if (!words.ok()) return words.status();
  std::vector<PreTokenizer::Step> steps;
  steps.emplace_back(PreTokenizer::Split{*std::move(words), SplitBehavior::kIsolated});
  steps.emplace_back(PreTokenizer::ByteLevel());
  spec.pre_tokenizer = PreTokenizer(std::move(steps));
  spec.decoder = TokenDecoder({}, TokenDecoder::ByteLevel(), {});
  return absl::OkStatus();
}

}  // namespace ddl
