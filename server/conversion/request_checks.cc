#include "server/conversion/request_checks.h"

#include <google/protobuf/duration.pb.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/random_ids.h"
#include "server/conversion/field_errors.h"
#include "server/conversion/input_tokens.h"
#include "server/conversion/sampling_checks.h"

namespace ddl {
namespace {

std::string RequestId(const std::string& asked, FieldErrors* errors) {
  if (asked.empty()) return NewRequestId();
  if (asked.size() > kMaxRequestIdBytes) {
    errors->Add("request_id", absl::StrCat("must be at most ", kMaxRequestIdBytes,
                                           " bytes long, not ", asked.size()));
  }
  return asked;
}

Priority ToPriority(v1::Priority priority, FieldErrors* errors) {
  switch (priority) {
    case v1::PRIORITY_HIGH:
      return Priority::kHigh;
    case v1::PRIORITY_UNSPECIFIED:
    case v1::PRIORITY_NORMAL:
      return Priority::kNormal;
    case v1::PRIORITY_LOW:
      return Priority::kLow;
    default:
      errors->AddRange("priority", "a value of the enum Priority", static_cast<int>(priority));
      return Priority::kNormal;
  }
}

StatsChoice ToStatsChoice(const v1::DdlStatsRequest& proto, const RequestLimits& limits,
                          FieldErrors* errors) {
  const StatsChoice choice = {.gates = proto.per_layer_beta(),
                              .gates_by_token = proto.per_token_beta(),
                              .update_norms = proto.update_norms()};
  if (choice.any() && !limits.has_delta_rule) {
    errors->Add("ddl_stats", absl::StrCat("must be unset: model '", limits.model,
                                          "' is a gpt, which has no delta rule"));
  }
  return choice;
}

absl::Duration ToQueueTimeout(const v1::GenerateRequest& request, FieldErrors* errors) {
  if (!request.has_queue_timeout()) return absl::InfiniteDuration();
  const google::protobuf::Duration& proto = request.queue_timeout();
  const absl::Duration timeout = absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
  if (timeout <= absl::ZeroDuration()) {
    errors->Add("queue_timeout",
                absl::StrCat("must be more than 0s, not ", absl::FormatDuration(timeout)));
  }
  return timeout;
}

// How texts of a request, or of its parameters, become tokens.
template <typename Message>
Tokenizer::EncodeOptions ToEncodeOptions(const Message& proto) {
  return {
      .add_special_tokens = !proto.has_add_special_tokens() || proto.add_special_tokens(),
      .parse_special_tokens = !proto.has_parse_special_tokens() || proto.parse_special_tokens()};
}

// Measures how long it lives into `*elapsed`.
class Stopwatch {
 public:
  explicit Stopwatch(absl::Duration* elapsed) : elapsed_(elapsed) {}
  ~Stopwatch() { *elapsed_ = absl::Now() - start_; }

 private:
  const absl::Time start_ = absl::Now();
  absl::Duration* const elapsed_;
};

Pooling ToPooling(v1::Pooling pooling, FieldErrors* errors) {
  switch (pooling) {
    case v1::POOLING_UNSPECIFIED:
    case v1::POOLING_LAST_TOKEN:
      return Pooling::kLastToken;
    case v1::POOLING_MEAN:
      return Pooling::kMean;
    case v1::POOLING_MAX:
      return Pooling::kMax;
    case v1::POOLING_WEIGHTED_MEAN:
      return Pooling::kWeightedMean;
    case v1::POOLING_NONE:
      return Pooling::kNone;
    default:
      errors->AddRange("params.pooling", "a value of the enum Pooling", static_cast<int>(pooling));
      return Pooling::kLastToken;
  }
}

HiddenReadout ToReadout(const v1::EmbedParams& proto, const RequestLimits& limits,
                        FieldErrors* errors) {
  HiddenReadout readout;
  switch (proto.readout()) {
    case v1::DDL_READOUT_UNSPECIFIED:
    case v1::DDL_READOUT_FINAL_NORM:
      readout.kind = HiddenReadout::Kind::kFinalNorm;
      break;
    case v1::DDL_READOUT_COMPRESSED:
      readout.kind = HiddenReadout::Kind::kCompressed;
      break;
    case v1::DDL_READOUT_CHANNEL:
      readout.kind = HiddenReadout::Kind::kChannel;
      break;
    case v1::DDL_READOUT_STATE_FLAT:
      readout.kind = HiddenReadout::Kind::kStateFlat;
      break;
    default:
      errors->AddRange("params.readout", "a value of the enum DdlReadout",
                       static_cast<int>(proto.readout()));
  }
  if (proto.has_layer()) {
    const auto layers = static_cast<int32_t>(limits.num_layers);
    const int32_t layer = proto.layer();
    if (layer < -layers || layer >= layers) {
      errors->Add("params.layer",
                  absl::StrCat("must be ", -layers, "...", layers - 1, ", not ", layer));
    } else {
      readout.layer = layer < 0 ? layer + layers : layer;
    }
  }
  if (proto.has_channel()) {
    if (proto.readout() != v1::DDL_READOUT_CHANNEL) {
      errors->Add("params.channel",
                  absl::StrCat("must be unset, not ", proto.channel(),
                               ", where params.readout is not DDL_READOUT_CHANNEL"));
    } else if (proto.channel() >= limits.value_channels) {
      errors->Add("params.channel", absl::StrCat("must be 0...", limits.value_channels - 1,
                                                 ", not ", proto.channel()));
    } else {
      readout.channel = static_cast<int32_t>(proto.channel());
    }
  }
  return readout;
}

EncodingFormat ToEncoding(v1::EncodingFormat format, FieldErrors* errors) {
  switch (format) {
    case v1::ENCODING_FORMAT_UNSPECIFIED:
    case v1::ENCODING_FORMAT_FLOAT:
      return EncodingFormat::kFloat;
    case v1::ENCODING_FORMAT_BYTES_F32LE:
      return EncodingFormat::kBytesF32Le;
    case v1::ENCODING_FORMAT_BYTES_BF16LE:
      return EncodingFormat::kBytesBf16Le;
    default:
      errors->AddRange("params.encoding_format", "a value of the enum EncodingFormat",
                       static_cast<int>(format));
      return EncodingFormat::kFloat;
  }
}

}  // namespace

absl::StatusOr<GenerateCall> ParseGenerate(const v1::GenerateRequest& request,
                                           const RequestLimits& limits) {
  FieldErrors errors;
  GenerateCall call;
  GenerateParams params;
  call.request.id = RequestId(request.request_id(), &errors);
  call.request.priority = ToPriority(request.priority(), &errors);
  call.request.queue_timeout = ToQueueTimeout(request, &errors);
  params.sampling = ToSampling(request.sampling(), limits.vocab_size, &errors);
  params.n = ToNumCompletions(request.sampling(), &errors);
  params.stopping = ToStopping(request.stopping(), limits, &errors);
  params.skip_special_tokens = !request.has_skip_special_tokens() || request.skip_special_tokens();
  params.logprobs = ToLogprobs("logprobs.logprobs", request.logprobs().has_logprobs(),
                               request.logprobs().logprobs(), &errors);
  params.prompt_logprobs =
      ToLogprobs("logprobs.prompt_logprobs", request.logprobs().has_prompt_logprobs(),
                 request.logprobs().prompt_logprobs(), &errors);
  call.with_logprobs = request.logprobs().has_logprobs();
  params.use_prefix_cache = !request.has_use_prefix_cache() || request.use_prefix_cache();
  call.stats = ToStatsChoice(request.ddl_stats(), limits, &errors);
  params.ddl_stats = call.stats.any();
  if (request.has_stream_interval()) {
    if (request.stream_interval() == 0) errors.AddRange("stream_interval", "at least 1", 0);
    call.stream_interval = static_cast<int32_t>(
        std::min<uint32_t>(request.stream_interval(), std::numeric_limits<int32_t>::max()));
  }
  if (!params.stopping.stop.empty() && limits.tokenizer == nullptr) {
    return NoTokenizer("stopping.stop", limits);
  }
  if (request.echo() && limits.tokenizer == nullptr) return NoTokenizer("echo", limits);

  const InputRules rules = {.encoding = ToEncodeOptions(request),
                            .truncation = request.truncation(),
                            .truncation_field = "truncation",
                            .most_tokens = limits.max_context_length - 1,
                            .most_tokens_reason = "the context less one"};
  CheckTruncation(rules, &errors);
  {
    const Stopwatch stopwatch(&call.tokenize);
    absl::StatusOr<CutTokens> prompt = ToTokens(request.prompt(), "prompt", rules, limits, &errors);
    if (!prompt.ok()) return prompt.status();
    if (params.prompt_logprobs >= 0) {
      CheckScored(prompt->tokens, "prompt.token_ids.ids", limits, &errors);
    }
    params.prompt = std::move(prompt->tokens);
  }
  if (!errors.empty()) return errors.status();
  if (request.echo()) {
    call.echo = limits.tokenizer->Decode(params.prompt, params.skip_special_tokens);
  }
  call.request.params = std::move(params);
  return call;
}

absl::StatusOr<EmbedCall> ParseEmbed(const v1::EmbedRequest& request, const RequestLimits& limits) {
  FieldErrors errors;
  EmbedCall call;
  EmbedParams params;
  call.request.id = RequestId(request.request_id(), &errors);
  call.request.priority = ToPriority(request.priority(), &errors);
  params.pooling = ToPooling(request.params().pooling(), &errors);
  params.normalize = !request.params().has_normalize() || request.params().normalize();
  call.encoding = ToEncoding(request.params().encoding_format(), &errors);
  params.readout = ToReadout(request.params(), limits, &errors);
  call.stats = ToStatsChoice(request.ddl_stats(), limits, &errors);
  params.ddl_stats = call.stats.any();
  if (request.params().has_dimensions()) {
    const int64_t width = params.readout.Width(limits.hidden_size, limits.value_channels);
    const uint32_t dimensions = request.params().dimensions();
    if (dimensions < 1 || dimensions > width) {
      errors.Add("params.dimensions", absl::StrCat("must be 1...", width, ", not ", dimensions));
    }
    params.dimensions = static_cast<int32_t>(std::min<int64_t>(dimensions, width));
  }

  const InputRules rules = {.encoding = ToEncodeOptions(request.params()),
                            .truncation = request.params().truncation(),
                            .truncation_field = "params.truncation",
                            .most_tokens = limits.max_context_length,
                            .most_tokens_reason = "the context"};
  CheckTruncation(rules, &errors);
  if (CheckBatch("inputs", request.inputs_size(), limits, &errors)) {
    const Stopwatch stopwatch(&call.tokenize);
    for (int i = 0; i < request.inputs_size(); ++i) {
      absl::StatusOr<CutTokens> input =
          ToTokens(request.inputs(i), absl::StrCat("inputs[", i, "]"), rules, limits, &errors);
      if (!input.ok()) return input.status();
      params.inputs.push_back(std::move(input->tokens));
      call.truncated.push_back(input->truncated);
    }
  }
  if (!errors.empty()) return errors.status();
  call.request.params = std::move(params);
  return call;
}

absl::StatusOr<ScoreCall> ParseScore(const v1::ScoreRequest& request, const RequestLimits& limits) {
  FieldErrors errors;
  ScoreCall call;
  ScoreParams params;
  call.request.id = RequestId(request.request_id(), &errors);
  const bool parse_special_tokens =
      !request.has_parse_special_tokens() || request.parse_special_tokens();
  const InputRules rules = {
      .encoding = {.add_special_tokens = true, .parse_special_tokens = parse_special_tokens},
      .truncation = {},
      .truncation_field = "",
      .most_tokens = limits.max_context_length,
      .most_tokens_reason = "the context"};
  if (CheckBatch("inputs", request.inputs_size(), limits, &errors)) {
    for (int i = 0; i < request.inputs_size(); ++i) {
      absl::StatusOr<CutTokens> input =
          ToTokens(request.inputs(i), absl::StrCat("inputs[", i, "]"), rules, limits, &errors);
      if (!input.ok()) return input.status();
      CheckScored(input->tokens, absl::StrCat("inputs[", i, "].token_ids.ids"), limits, &errors);
      params.inputs.push_back(std::move(input->tokens));
    }
  }
  if (!errors.empty()) return errors.status();
  call.request.params = std::move(params);
  return call;
}

absl::StatusOr<std::vector<std::vector<Tokenizer::Token>>> ParseTokenize(
    const v1::TokenizeRequest& request, const RequestLimits& limits) {
  if (limits.tokenizer == nullptr) return NoTokenizer("texts", limits);
  FieldErrors errors;
  std::vector<std::vector<Tokenizer::Token>> lists;
  if (!CheckBatch("texts", request.texts_size(), limits, &errors)) return errors.status();
  for (int i = 0; i < request.texts_size(); ++i) {
    absl::StatusOr<std::vector<Tokenizer::Token>> tokens =
        limits.tokenizer->EncodeWithOffsets(request.texts(i), ToEncodeOptions(request));
    if (tokens.ok()) {
      lists.push_back(*std::move(tokens));
    } else {
      errors.Add(absl::StrCat("texts[", i, "]"), std::string(tokens.status().message()));
    }
  }
  if (!errors.empty()) return errors.status();
  return lists;
}

absl::StatusOr<DetokenizeCall> ParseDetokenize(const v1::DetokenizeRequest& request,
                                               const RequestLimits& limits) {
  if (limits.tokenizer == nullptr) return NoTokenizer("sequences", limits);
  FieldErrors errors;
  DetokenizeCall call;
  if (!CheckBatch("sequences", request.sequences_size(), limits, &errors)) return errors.status();
  call.skip_special_tokens = !request.has_skip_special_tokens() || request.skip_special_tokens();
  for (int i = 0; i < request.sequences_size(); ++i) {
    call.sequences.push_back(ToTokenIds(request.sequences(i).ids(),
                                        absl::StrCat("sequences[", i, "].ids"), limits.vocab_size,
                                        &errors));
  }
  if (!errors.empty()) return errors.status();
  return call;
}

}  // namespace ddl
