#include "server/conversion/proto_conversion.h"

#include <google/protobuf/duration.pb.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/random_ids.h"
#include "base/status_details.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ddl {
namespace {

constexpr int kMaxStopStrings = 64;
constexpr size_t kMaxStopBytes = 1024;
constexpr int kMaxStopTokenIds = 256;
constexpr uint32_t kMaxLogprobs = 20;
constexpr uint32_t kMaxCompletions = 16;
constexpr float kMaxLogitBias = 100;

// beta = 0 leaves the state as it is, 1 erases what the key points at, 2 reflects it.
constexpr float kIdentityGate = 0.1f;
constexpr float kReflectionGate = 1.5f;

constexpr char kErrorDomain[] = "ddl";
// Clients take 8 KiB of trailers by default, of which details are a third larger in base64.
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxDetailsBytes = 3072;

// `text` cut to at most `bytes`, at a character's start, with "..." where something is missing.
std::string Clip(const std::string& text, size_t bytes) {
  if (text.size() <= bytes) return text;
  size_t end = bytes - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

// Collects what is wrong with a request's fields.
class FieldErrors {
 public:
  void Add(std::string field, std::string description) {
    violations_.push_back({std::move(field), std::move(description)});
  }

  // An allowed range and the value found, for numbers of any type.
  template <typename Number>
  void AddRange(std::string field, const char* allowed, Number value) {
    Add(std::move(field), absl::StrCat("must be ", allowed, ", not ", value));
  }

  void AddStatus(const absl::Status& status) {
    for (FieldViolation& violation : DetailsOf(status).field_violations) {
      violations_.push_back(std::move(violation));
    }
  }

  bool empty() const { return violations_.empty(); }

  // OK when nothing is wrong, else INVALID_ARGUMENT with all violations.
  absl::Status status() const {
    if (violations_.empty()) return absl::OkStatus();
    const std::string message =
        absl::StrJoin(violations_, "; ", [](std::string* out, const FieldViolation& violation) {
          absl::StrAppend(out, violation.field, ": ", violation.description);
        });
    StatusDetails details;
    details.field_violations = violations_;
    return WithDetails(absl::InvalidArgumentError(message), details);
  }

 private:
  std::vector<FieldViolation> violations_;
};

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

// Every number of a token id list that is none, as violations of field[i]; the ids otherwise.
template <typename Ids>
std::vector<TokenId> ToTokenIds(const Ids& ids, const std::string& field, int64_t vocab_size,
                                FieldErrors* errors) {
  std::vector<TokenId> tokens;
  tokens.reserve(ids.size());
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= vocab_size) {
      // One is enough to see what is wrong; a whole prompt of them would not fit the answer.
      errors->Add(
          absl::StrCat(field, "[", i, "]"),
          absl::StrCat("must be less than the vocabulary's size, ", vocab_size, ", not ", ids[i]));
      return tokens;
    }
    tokens.push_back(static_cast<TokenId>(ids[i]));
  }
  return tokens;
}

absl::Status NoTokenizer(const std::string& field, const RequestLimits& limits) {
  return absl::FailedPreconditionError(absl::StrCat(
      field, " needs a tokenizer, and model '", limits.model,
      "' has none: its folder holds neither tokenizer.json nor vocab.json with merges.txt. Send "
      "token ids instead"));
}

struct CutTokens {
  std::vector<TokenId> tokens;
  bool truncated = false;
};

struct InputRules {
  bool add_special_tokens = true;
  v1::Truncation truncation;
  std::string truncation_field;    // empty: nothing is ever cut
  int32_t most_tokens = 0;         // that the model can take
  const char* most_tokens_reason;  // for the message
};

void CheckTruncation(const InputRules& rules, FieldErrors* errors) {
  if (!v1::TruncationDirection_IsValid(rules.truncation.direction())) {
    errors->AddRange(rules.truncation_field + ".direction",
                     "a value of the enum TruncationDirection",
                     static_cast<int>(rules.truncation.direction()));
  }
  if (rules.truncation.has_max_tokens() && rules.truncation.max_tokens() == 0) {
    errors->AddRange(rules.truncation_field + ".max_tokens", "at least 1", 0);
  }
}

// The tokens of `input`, cut as `rules` say. FAILED_PRECONDITION for text without a tokenizer.
absl::StatusOr<CutTokens> ToTokens(const v1::Input& input, const std::string& field,
                                   const InputRules& rules, const RequestLimits& limits,
                                   FieldErrors* errors) {
  CutTokens cut;
  switch (input.input_case()) {
    case v1::Input::kText: {
      if (limits.tokenizer == nullptr) return NoTokenizer(field + ".text", limits);
      absl::StatusOr<std::vector<TokenId>> tokens =
          limits.tokenizer->Encode(input.text(), rules.add_special_tokens);
      if (!tokens.ok()) {
        errors->Add(field + ".text", std::string(tokens.status().message()));
        return cut;
      }
      cut.tokens = *std::move(tokens);
      break;
    }
    case v1::Input::kTokenIds: {
      const auto& ids = input.token_ids().ids();
      cut.tokens = ToTokenIds(ids, field + ".token_ids.ids", limits.vocab_size, errors);
      if (cut.tokens.size() != static_cast<size_t>(ids.size())) return cut;
      break;
    }
    case v1::Input::INPUT_NOT_SET:
      errors->Add(field, "must hold text or token_ids");
      return cut;
  }
  if (cut.tokens.empty()) {
    errors->Add(field, "must hold at least 1 token, not 0");
    return cut;
  }

  size_t most = rules.most_tokens;
  std::string reason = rules.most_tokens_reason;
  // 0, when it was asked for, is a mistake that CheckTruncation names.
  if (const uint32_t asked = rules.truncation.max_tokens(); asked > 0 && asked < most) {
    most = asked;
    reason = rules.truncation_field + ".max_tokens";
  }
  if (cut.tokens.size() <= most) return cut;
  if (!rules.truncation.truncate()) {
    errors->Add(
        field,
        absl::StrCat("must be 1...", most, " tokens long (", reason, "), not ", cut.tokens.size(),
                     rules.truncation_field.empty()
                         ? ""
                         : absl::StrCat("; ", rules.truncation_field, ".truncate cuts it")));
    return cut;
  }
  cut.truncated = true;
  if (rules.truncation.direction() == v1::TRUNCATION_DIRECTION_LEFT) {
    cut.tokens.erase(cut.tokens.begin(), cut.tokens.end() - static_cast<ptrdiff_t>(most));
  } else {
    cut.tokens.resize(most);
  }
  return cut;
}

// The biases by ascending id. One wrong entry is enough to see what is wrong.
std::vector<LogitBias> ToLogitBias(const google::protobuf::Map<uint32_t, float>& proto,
                                   int64_t vocab_size, FieldErrors* errors) {
  const std::map<uint32_t, float> by_id(proto.begin(), proto.end());
  std::vector<LogitBias> biases;
  for (const auto& [id, bias] : by_id) {
    const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
    if (id >= vocab_size) {
      errors->Add(field, absl::StrCat("the token id must be less than the vocabulary's size, ",
                                      vocab_size, ", not ", id));
      break;
    }
    if (!(bias >= -kMaxLogitBias && bias <= kMaxLogitBias)) {
      errors->AddRange(field, "-100...100", bias);
      break;
    }
    biases.push_back({.id = static_cast<TokenId>(id), .bias = bias});
  }
  return biases;
}

SamplingParams ToSampling(const v1::SamplingParams& proto, int64_t vocab_size,
                          FieldErrors* errors) {
  SamplingParams params;
  if (proto.has_temperature()) {
    params.temperature = proto.temperature();
    if (!(params.temperature >= 0 && params.temperature <= 2)) {
      errors->AddRange("sampling.temperature", "0...2", params.temperature);
    }
  }
  if (proto.has_top_p()) {
    params.top_p = proto.top_p();
    if (!(params.top_p > 0 && params.top_p <= 1)) {
      errors->AddRange("sampling.top_p", "more than 0 and at most 1", params.top_p);
    }
  }
  if (proto.has_top_k()) {
    params.top_k = proto.top_k();
    if (params.top_k != -1 && params.top_k < 1) {
      errors->AddRange("sampling.top_k", "-1 (off) or at least 1", params.top_k);
    }
  }
  if (proto.has_min_p()) {
    params.min_p = proto.min_p();
    if (!(params.min_p >= 0 && params.min_p <= 1)) {
      errors->AddRange("sampling.min_p", "0...1", params.min_p);
    }
  }
  if (proto.has_repetition_penalty()) {
    params.repetition_penalty = proto.repetition_penalty();
    if (!(params.repetition_penalty > 0 && std::isfinite(params.repetition_penalty))) {
      errors->AddRange("sampling.repetition_penalty", "more than 0 and finite",
                       params.repetition_penalty);
    }
  }
  const auto penalty = [&](const char* field, float value) {
    if (!(value >= -2 && value <= 2)) errors->AddRange(field, "-2...2", value);
    return value;
  };
  params.frequency_penalty = penalty("sampling.frequency_penalty", proto.frequency_penalty());
  params.presence_penalty = penalty("sampling.presence_penalty", proto.presence_penalty());
  params.logit_bias = ToLogitBias(proto.logit_bias(), vocab_size, errors);
  params.seed = proto.has_seed() ? proto.seed() : RandomBits();
  return params;
}

int32_t ToNumCompletions(const v1::SamplingParams& proto, FieldErrors* errors) {
  if (!proto.has_n()) return 1;
  if (proto.n() < 1 || proto.n() > kMaxCompletions) {
    errors->AddRange("sampling.n", "1...16", proto.n());
    return 1;
  }
  return static_cast<int32_t>(proto.n());
}

// -1 when unset.
int32_t ToLogprobs(const char* field, bool is_set, uint32_t logprobs, FieldErrors* errors) {
  if (!is_set) return -1;
  if (logprobs > kMaxLogprobs) errors->AddRange(field, "0...20", logprobs);
  return static_cast<int32_t>(std::min(logprobs, kMaxLogprobs));
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

StoppingParams ToStopping(const v1::StoppingParams& proto, const RequestLimits& limits,
                          FieldErrors* errors) {
  StoppingParams params;
  // More than the context cannot be reached, so larger numbers mean the same.
  const auto clamp = [&](uint32_t tokens) {
    return static_cast<int32_t>(
        std::min<uint32_t>(tokens, static_cast<uint32_t>(limits.max_context_length)));
  };
  params.min_tokens = clamp(proto.min_tokens());
  if (proto.has_max_tokens()) {
    params.max_tokens = clamp(proto.max_tokens());
    if (proto.max_tokens() == 0) errors->AddRange("stopping.max_tokens", "at least 1", 0);
    if (proto.min_tokens() > proto.max_tokens() && proto.max_tokens() > 0) {
      errors->Add("stopping.min_tokens",
                  absl::StrCat("must be at most stopping.max_tokens, ", proto.max_tokens(),
                               ", not ", proto.min_tokens()));
    }
  } else {
    params.max_tokens = std::max(clamp(limits.default_max_tokens), params.min_tokens);
  }

  if (proto.stop_size() > kMaxStopStrings) {
    errors->Add("stopping.stop", absl::StrCat("must be at most ", kMaxStopStrings, " strings, not ",
                                              proto.stop_size()));
  }
  for (int i = 0; i < std::min(proto.stop_size(), kMaxStopStrings); ++i) {
    const std::string& stop = proto.stop(i);
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      errors->Add(absl::StrCat("stopping.stop[", i, "]"),
                  absl::StrCat("must be 1...", kMaxStopBytes, " bytes long, not ", stop.size()));
    }
    params.stop.push_back(stop);
  }
  if (proto.stop_token_ids_size() > kMaxStopTokenIds) {
    errors->Add("stopping.stop_token_ids", absl::StrCat("must be at most ", kMaxStopTokenIds,
                                                        " ids, not ", proto.stop_token_ids_size()));
  } else {
    params.stop_token_ids =
        ToTokenIds(proto.stop_token_ids(), "stopping.stop_token_ids", limits.vocab_size, errors);
  }
  params.ignore_eos = proto.ignore_eos();
  params.include_stop_str_in_output = proto.include_stop_str_in_output();
  return params;
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

// Measures how long it lives into `*elapsed`.
class Stopwatch {
 public:
  explicit Stopwatch(absl::Duration* elapsed) : elapsed_(elapsed) {}
  ~Stopwatch() { *elapsed_ = absl::Now() - start_; }

 private:
  const absl::Time start_ = absl::Now();
  absl::Duration* const elapsed_;
};

void SetDuration(absl::Duration duration, google::protobuf::Duration* proto) {
  proto->set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  proto->set_nanos(
      static_cast<int32_t>(absl::IDivDuration(duration, absl::Nanoseconds(1), &duration)));
}

void SetUsage(const RequestUsage& usage, v1::Usage* proto) {
  proto->set_prompt_tokens(static_cast<uint32_t>(usage.prompt_tokens));
  proto->set_completion_tokens(static_cast<uint32_t>(usage.completion_tokens));
  proto->set_total_tokens(static_cast<uint32_t>(usage.prompt_tokens + usage.completion_tokens));
  proto->set_cached_tokens(static_cast<uint32_t>(usage.cached_tokens));
}

void SetTimings(const RequestTimings& timings, absl::Duration tokenize, v1::Timings* proto) {
  SetDuration(timings.queue, proto->mutable_queue());
  SetDuration(timings.prefill, proto->mutable_prefill());
  SetDuration(timings.decode, proto->mutable_decode());
  SetDuration(timings.time_to_first_token, proto->mutable_time_to_first_token());
  SetDuration(tokenize, proto->mutable_tokenize());
  proto->set_preemptions(static_cast<uint32_t>(timings.preemptions));
}

template <typename Token>  // TokenInfo or TopToken
void SetIdAndBytes(TokenId id, const Tokenizer* tokenizer, Token* proto) {
  proto->set_token_id(static_cast<uint32_t>(id));
  if (tokenizer != nullptr) proto->set_token_bytes(std::string(tokenizer->TokenBytes(id)));
}

// A token that nothing predicted.
void SetFirstToken(TokenId id, const Tokenizer* tokenizer, v1::TokenInfo* proto) {
  SetIdAndBytes(id, tokenizer, proto);
  proto->set_special(tokenizer != nullptr && tokenizer->IsSpecial(id));
}

void SetToken(const SampledToken& token, const Tokenizer* tokenizer, bool with_logprobs,
              v1::TokenInfo* proto) {
  SetFirstToken(token.id, tokenizer, proto);
  if (!with_logprobs) return;
  proto->set_logprob(token.logprob);
  for (const TokenLogprob& alternative : token.top) {
    v1::TopToken* top = proto->add_top();
    SetIdAndBytes(alternative.id, tokenizer, top);
    top->set_logprob(alternative.logprob);
  }
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kEos:
      return v1::FINISH_REASON_EOS;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kContext:
      return v1::FINISH_REASON_CONTEXT;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

// The prompt's tokens, with the logprobs of all but the first; nothing unless they were asked.
void SetPromptTokens(const GenerateCall& call, const Tokenizer* tokenizer,
                     const RequestStart& start,
                     google::protobuf::RepeatedPtrField<v1::TokenInfo>* protos) {
  if (call.params().prompt_logprobs < 0) return;
  SetFirstToken(call.params().prompt.front(), tokenizer, protos->Add());
  for (const SampledToken& token : start.prompt) {
    SetToken(token, tokenizer, /*with_logprobs=*/true, protos->Add());
  }
}

void SetSublayerStats(const SublayerStats& stats, const StatsChoice& choice,
                      v1::DdlSublayerStats* proto) {
  const auto positions = static_cast<double>(stats.beta.size());
  const auto mean = [](const std::vector<float>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  };
  if (choice.gates && !stats.beta.empty()) {
    const double beta_mean = mean(stats.beta);
    double squares = 0.0;
    double identities = 0.0;
    double reflections = 0.0;
    for (const float beta : stats.beta) {
      squares += (beta - beta_mean) * (beta - beta_mean);
      identities += beta < kIdentityGate ? 1.0 : 0.0;
      reflections += beta > kReflectionGate ? 1.0 : 0.0;
    }
    const auto [least, most] = std::minmax_element(stats.beta.begin(), stats.beta.end());
    proto->set_beta_mean(static_cast<float>(beta_mean));
    proto->set_beta_min(*least);
    proto->set_beta_max(*most);
    proto->set_beta_std(static_cast<float>(std::sqrt(squares / positions)));
    proto->set_fraction_identity(static_cast<float>(identities / positions));
    proto->set_fraction_reflection(static_cast<float>(reflections / positions));
  }
  if (choice.gates_by_token) {
    proto->mutable_beta_per_token()->Add(stats.beta.begin(), stats.beta.end());
  }
  if (choice.update_norms && !stats.update_ratio.empty()) {
    proto->set_update_norm_mean(static_cast<float>(mean(stats.update_ratio)));
  }
}

// Of the completion or input `index`.
template <typename Owner>  // Completion or Embedding
void SetStats(const StatsChoice& choice, const RequestEnd& end, size_t index, Owner* proto) {
  if (!choice.any() || index >= end.ddl_stats.size()) return;
  const std::vector<SublayerStats>& sublayers = end.ddl_stats[index];
  for (size_t i = 0; i < sublayers.size(); ++i) {
    v1::DdlSublayerStats* sublayer = proto->mutable_ddl_stats()->add_sublayers();
    sublayer->set_layer(static_cast<uint32_t>(i / 2));
    sublayer->set_sublayer(i % 2 == 0 ? "attn" : "mlp");
    SetSublayerStats(sublayers[i], choice, sublayer);
  }
}

// All of a completion but its text and tokens.
void SetEnd(const GenerateCall& call, const RequestEnd& end, size_t index, v1::Completion* proto) {
  DDL_CHECK(index < end.completions.size(), "a completion that ended OK has an end");
  const CompletionEnd& completion = end.completions[index];
  proto->set_index(static_cast<uint32_t>(index));
  proto->set_finish_reason(ToProto(completion.finish_reason));
  if (completion.matched_stop_str.has_value()) {
    proto->set_matched_stop_str(*completion.matched_stop_str);
  } else if (completion.matched_token_id.has_value()) {
    proto->set_matched_token_id(static_cast<uint32_t>(*completion.matched_token_id));
  }
  proto->set_cumulative_logprob(completion.cumulative_logprob);
  proto->set_seed(call.params().sampling.seed + index);
  SetStats(call.stats, end, index, proto);
}

// The upper half of a float32, rounded to nearest, ties to even.
uint16_t ToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

template <typename Word>
void AppendLittleEndian(Word word, std::string* out) {
  for (size_t byte = 0; byte < sizeof word; ++byte) {
    out->push_back(static_cast<char>((word >> (8 * byte)) & 0xFF));
  }
}

void SetVector(const std::vector<float>& values, EncodingFormat encoding, v1::Vector* proto) {
  if (encoding == EncodingFormat::kFloat) {
    proto->mutable_values()->Add(values.begin(), values.end());
    return;
  }
  std::string* raw = proto->mutable_raw();
  raw->reserve(values.size() * (encoding == EncodingFormat::kBytesF32Le ? 4 : 2));
  for (const float value : values) {
    if (encoding == EncodingFormat::kBytesF32Le) {
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      AppendLittleEndian(bits, raw);
    } else {
      AppendLittleEndian(ToBf16(value), raw);
    }
  }
}

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

// Checks that a call brings 1...max_client_batch_size of something.
bool CheckBatch(const char* field, int size, const RequestLimits& limits, FieldErrors* errors) {
  if (size >= 1 && size <= limits.max_client_batch_size) return true;
  errors->Add(field, absl::StrCat("must hold 1...", limits.max_client_batch_size,
                                  " of them a call, not ", size));
  return false;
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

  const InputRules rules = {
      .add_special_tokens = !request.has_add_special_tokens() || request.add_special_tokens(),
      .truncation = request.truncation(),
      .truncation_field = "truncation",
      .most_tokens = limits.max_context_length - 1,
      .most_tokens_reason = "the context less one"};
  CheckTruncation(rules, &errors);
  {
    const Stopwatch stopwatch(&call.tokenize);
    absl::StatusOr<CutTokens> prompt = ToTokens(request.prompt(), "prompt", rules, limits, &errors);
    if (!prompt.ok()) return prompt.status();
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
    const int64_t width = params.readout.kind == HiddenReadout::Kind::kStateFlat
                              ? limits.hidden_size * limits.value_channels
                              : limits.hidden_size;
    const uint32_t dimensions = request.params().dimensions();
    if (dimensions < 1 || dimensions > width) {
      errors.Add("params.dimensions", absl::StrCat("must be 1...", width, ", not ", dimensions));
    }
    params.dimensions = static_cast<int32_t>(std::min<int64_t>(dimensions, width));
  }

  const InputRules rules = {.add_special_tokens = !request.params().has_add_special_tokens() ||
                                                  request.params().add_special_tokens(),
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
  const InputRules rules = {.add_special_tokens = true,
                            .truncation = {},
                            .truncation_field = "",
                            .most_tokens = limits.max_context_length,
                            .most_tokens_reason = "the context"};
  if (CheckBatch("inputs", request.inputs_size(), limits, &errors)) {
    for (int i = 0; i < request.inputs_size(); ++i) {
      absl::StatusOr<CutTokens> input =
          ToTokens(request.inputs(i), absl::StrCat("inputs[", i, "]"), rules, limits, &errors);
      if (!input.ok()) return input.status();
      params.inputs.push_back(std::move(input->tokens));
    }
  }
  if (!errors.empty()) return errors.status();
  call.request.params = std::move(params);
  return call;
}

absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                              const RequestLimits& limits) {
  if (limits.tokenizer == nullptr) return NoTokenizer("texts", limits);
  FieldErrors errors;
  v1::TokenizeResponse response;
  if (!CheckBatch("texts", request.texts_size(), limits, &errors)) return errors.status();
  const bool add_special_tokens = !request.has_add_special_tokens() || request.add_special_tokens();
  for (int i = 0; i < request.texts_size(); ++i) {
    absl::StatusOr<std::vector<Tokenizer::Token>> tokens =
        limits.tokenizer->EncodeWithOffsets(request.texts(i), add_special_tokens);
    if (!tokens.ok()) {
      errors.Add(absl::StrCat("texts[", i, "]"), std::string(tokens.status().message()));
      continue;
    }
    v1::TokenizeResponse::TokenList* list = response.add_lists();
    for (const Tokenizer::Token& token : *tokens) {
      v1::Token* proto = list->add_tokens();
      proto->set_id(static_cast<uint32_t>(token.id));
      proto->set_bytes(std::string(limits.tokenizer->TokenBytes(token.id)));
      proto->set_start(token.start);
      proto->set_end(token.end);
      proto->set_special(limits.tokenizer->IsSpecial(token.id));
    }
  }
  if (!errors.empty()) return errors.status();
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                  const RequestLimits& limits) {
  if (limits.tokenizer == nullptr) return NoTokenizer("sequences", limits);
  FieldErrors errors;
  v1::DetokenizeResponse response;
  if (!CheckBatch("sequences", request.sequences_size(), limits, &errors)) return errors.status();
  const bool skip_special_tokens =
      !request.has_skip_special_tokens() || request.skip_special_tokens();
  for (int i = 0; i < request.sequences_size(); ++i) {
    const std::vector<TokenId> tokens =
        ToTokenIds(request.sequences(i).ids(), absl::StrCat("sequences[", i, "].ids"),
                   limits.vocab_size, &errors);
    if (errors.empty()) response.add_texts(limits.tokenizer->Decode(tokens, skip_special_tokens));
  }
  if (!errors.empty()) return errors.status();
  return response;
}

v1::GenerateResponse ToGenerateResponse(const GenerateCall& call, const ModelIdentity& model,
                                        const Tokenizer* tokenizer, const RequestStart& start,
                                        const std::vector<WholeCompletion>& wholes,
                                        const RequestEnd& end) {
  v1::GenerateResponse response;
  response.set_request_id(call.request.id);
  response.set_model(model.name);
  response.set_model_version(model.version);
  response.set_system_fingerprint(model.system_fingerprint);
  for (size_t i = 0; i < wholes.size(); ++i) {
    v1::Completion* completion = response.add_completions();
    completion->set_text(call.echo.value_or("") + wholes[i].text);
    for (const SampledToken& token : wholes[i].tokens) {
      SetToken(token, tokenizer, call.with_logprobs, completion->add_tokens());
    }
    SetEnd(call, end, i, completion);
  }
  SetPromptTokens(call, tokenizer, start, response.mutable_prompt_tokens());
  SetUsage(end.usage, response.mutable_usage());
  SetTimings(end.timings, call.tokenize, response.mutable_timings());
  return response;
}

v1::GenerateStreamResponse ToStreamStart(const GenerateCall& call, const ModelIdentity& model,
                                         const Tokenizer* tokenizer, const RequestStart& start) {
  v1::GenerateStreamResponse response;
  response.set_request_id(call.request.id);
  v1::StreamStart* proto = response.mutable_start();
  proto->set_model(model.name);
  proto->set_model_version(model.version);
  proto->set_prompt_tokens(static_cast<uint32_t>(call.params().prompt.size()));
  proto->set_cached_tokens(static_cast<uint32_t>(start.cached_tokens));
  proto->set_system_fingerprint(model.system_fingerprint);
  SetPromptTokens(call, tokenizer, start, proto->mutable_prompt_token_infos());
  return response;
}

v1::GenerateStreamResponse ToStreamDelta(const GenerateCall& call, const Tokenizer* tokenizer,
                                         const CompletionDelta& delta) {
  v1::GenerateStreamResponse response;
  response.set_request_id(call.request.id);
  v1::StreamDelta* proto = response.mutable_delta();
  proto->set_index(static_cast<uint32_t>(delta.index));
  proto->set_text(delta.text);
  for (const SampledToken& token : delta.tokens) {
    SetToken(token, tokenizer, call.with_logprobs, proto->add_tokens());
  }
  return response;
}

v1::GenerateStreamResponse ToStreamEnd(const GenerateCall& call, const RequestEnd& end) {
  v1::GenerateStreamResponse response;
  response.set_request_id(call.request.id);
  v1::StreamEnd* stream_end = response.mutable_end();
  for (size_t i = 0; i < end.completions.size(); ++i) {
    SetEnd(call, end, i, stream_end->add_completions());
  }
  SetUsage(end.usage, stream_end->mutable_usage());
  SetTimings(end.timings, call.tokenize, stream_end->mutable_timings());
  return response;
}

v1::EmbedResponse ToEmbedResponse(const EmbedCall& call, const ModelIdentity& model,
                                  const std::vector<InputEmbedding>& embeddings,
                                  const RequestEnd& end) {
  const std::vector<std::vector<TokenId>>& inputs = call.params().inputs;
  std::vector<const InputEmbedding*> by_index(inputs.size());
  for (const InputEmbedding& embedding : embeddings) by_index[embedding.index] = &embedding;

  v1::EmbedResponse response;
  response.set_request_id(call.request.id);
  response.set_model(model.name);
  response.set_model_version(model.version);
  response.set_system_fingerprint(model.system_fingerprint);
  for (size_t i = 0; i < inputs.size(); ++i) {
    DDL_CHECK(by_index[i] != nullptr, "an embed that ended OK has every embedding");
    v1::Embedding* embedding = response.add_embeddings();
    embedding->set_index(static_cast<uint32_t>(i));
    embedding->set_prompt_tokens(static_cast<uint32_t>(inputs[i].size()));
    embedding->set_truncated(call.truncated[i]);
    for (const std::vector<float>& vector : by_index[i]->vectors) {
      SetVector(vector, call.encoding, embedding->add_vectors());
      response.set_dimensions(static_cast<uint32_t>(vector.size()));
    }
    SetStats(call.stats, end, i, embedding);
  }
  SetUsage(end.usage, response.mutable_usage());
  SetTimings(end.timings, call.tokenize, response.mutable_timings());
  return response;
}

v1::ScoreResponse ToScoreResponse(const ScoreCall& call, const Tokenizer* tokenizer,
                                  const std::vector<InputScore>& scores, const RequestEnd& end) {
  const std::vector<std::vector<TokenId>>& inputs = call.params().inputs;
  std::vector<const InputScore*> by_index(inputs.size());
  for (const InputScore& score : scores) by_index[score.index] = &score;

  v1::ScoreResponse response;
  response.set_request_id(call.request.id);
  for (size_t i = 0; i < inputs.size(); ++i) {
    DDL_CHECK(by_index[i] != nullptr, "a score that ended OK has every input's");
    const std::vector<SampledToken>& tokens = by_index[i]->tokens;
    v1::Score* score = response.add_scores();
    score->set_index(static_cast<uint32_t>(i));
    SetFirstToken(inputs[i].front(), tokenizer, score->add_tokens());
    double total = 0.0;
    for (const SampledToken& token : tokens) {
      SetToken(token, tokenizer, /*with_logprobs=*/true, score->add_tokens());
      total += token.logprob;
    }
    score->set_total_logprob(total);
    score->set_mean_nll(tokens.empty() ? 0.0 : -total / static_cast<double>(tokens.size()));
  }
  SetUsage(end.usage, response.mutable_usage());
  return response;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = Clip(std::string(status.message()), kMaxMessageBytes);
  google::rpc::Status proto;
  proto.set_code(static_cast<int>(status.code()));
  proto.set_message(message);
  const StatusDetails details = DetailsOf(status);
  if (!details.reason.empty()) {
    google::rpc::ErrorInfo info;
    info.set_reason(details.reason);
    info.set_domain(kErrorDomain);
    info.mutable_metadata()->insert(details.metadata.begin(), details.metadata.end());
    proto.add_details()->PackFrom(info);
  }
  if (details.retry_after.has_value()) {
    google::rpc::RetryInfo info;
    SetDuration(*details.retry_after, info.mutable_retry_delay());
    proto.add_details()->PackFrom(info);
  }
  google::rpc::BadRequest bad_request;
  for (const FieldViolation& violation : details.field_violations) {
    google::rpc::BadRequest::FieldViolation added;
    added.set_field(violation.field);
    added.set_description(Clip(violation.description, kMaxMessageBytes));
    if (bad_request.ByteSizeLong() + added.ByteSizeLong() > kMaxDetailsBytes) break;
    *bad_request.add_field_violations() = std::move(added);
  }
  if (bad_request.field_violations_size() > 0) proto.add_details()->PackFrom(bad_request);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message,
                      proto.details_size() > 0 ? proto.SerializeAsString() : "");
}

absl::Time ToDeadline(std::chrono::system_clock::time_point deadline) {
  return deadline == std::chrono::system_clock::time_point::max() ? absl::InfiniteFuture()
                                                                  : absl::FromChrono(deadline);
}

}  // namespace ddl
