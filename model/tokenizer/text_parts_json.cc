#include "model/tokenizer/text_parts_json.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/strict_json.h"
#include "model/tokenizer/json_fields.h"
#include "model/tokenizer/part_fields.h"
#include "model/tokenizer/utf8.h"

namespace ddl {
namespace {

using Json = nlohmann::json;

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

constexpr char kPreTokenizers[] =
    R"("ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", )"
    R"("Metaspace", "CharDelimiterSplit", "BertPreTokenizer" and Sequences of these)";

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

}  // namespace

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

}  // namespace ddl
