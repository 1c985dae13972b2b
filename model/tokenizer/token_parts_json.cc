#include "model/tokenizer/token_parts_json.h"

#include <cstddef>
#include <optional>
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

constexpr char kDecoders[] =
    R"("ByteLevel", "ByteFallback", "Metaspace", "BPEDecoder", "Fuse", "Replace", "Strip" and )"
    R"(Sequences of these)";

absl::StatusOr<size_t> ReadCount(const Json& part, const char* key) {
  const Json& value = Member(part, key);
  constexpr int kMax = 1000;
  if (!value.is_number_integer() || value < 0 || value > kMax) {
    return Fault(
        absl::StrCat(key, " must be a whole number from 0 to ", kMax, ", found ", ShowJson(value)));
  }
  return value.get<size_t>();
}

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

}  // namespace

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

}  // namespace ddl
