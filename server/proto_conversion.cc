#include "server/proto_conversion.h"

#include <google/protobuf/duration.pb.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "model/check.h"
#include "server/engine/status_details.h"

namespace ddl {
namespace {

constexpr int kMaxStopStrings = 64;
constexpr size_t kMaxStopBytes = 1024;
constexpr int kMaxStopTokenIds = 256;
constexpr uint32_t kMaxLogprobs = 20;
constexpr size_t kMaxRequestIdBytes = 128;

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

// A field of the contract that this version does not serve. Neutral values are accepted: they
// ask for what happens anyway.
template <typename Message>
struct UnservedField {
  const char* field;
  bool (*is_asked)(const Message&);
};

bool AsksForStats(const v1::DdlStatsRequest& stats) {
  return stats.per_layer_beta() || stats.per_token_beta() || stats.update_norms();
}

constexpr UnservedField<v1::GenerateRequest> kUnservedGenerate[] = {
    {"sampling.min_p", [](const auto& r) { return r.sampling().min_p() != 0; }},
    {"sampling.repetition_penalty",
     [](const auto& r) {
       return r.sampling().has_repetition_penalty() && r.sampling().repetition_penalty() != 1;
     }},
    {"sampling.frequency_penalty",
     [](const auto& r) { return r.sampling().frequency_penalty() != 0; }},
    {"sampling.presence_penalty",
     [](const auto& r) { return r.sampling().presence_penalty() != 0; }},
    {"sampling.logit_bias", [](const auto& r) { return r.sampling().logit_bias_size() > 0; }},
    {"sampling.n", [](const auto& r) { return r.sampling().has_n() && r.sampling().n() != 1; }},
    {"logprobs.prompt_logprobs", [](const auto& r) { return r.logprobs().has_prompt_logprobs(); }},
    {"echo", [](const auto& r) { return r.echo(); }},
    {"ddl_stats", [](const auto& r) { return AsksForStats(r.ddl_stats()); }},
};

constexpr UnservedField<v1::EmbedRequest> kUnservedEmbed[] = {
    {"params.pooling",
     [](const auto& r) { return r.params().pooling() == v1::POOLING_WEIGHTED_MEAN; }},
    {"params.layer", [](const auto& r) { return r.params().has_layer(); }},
    {"params.readout",
     [](const auto& r) {
       return r.params().readout() != v1::DDL_READOUT_UNSPECIFIED &&
              r.params().readout() != v1::DDL_READOUT_FINAL_NORM &&
              v1::DdlReadout_IsValid(r.params().readout());
     }},
    {"params.channel", [](const auto& r) { return r.params().has_channel(); }},
    {"ddl_stats", [](const auto& r) { return AsksForStats(r.ddl_stats()); }},
};

template <typename Message, size_t kSize>
absl::Status CheckServed(const UnservedField<Message> (&fields)[kSize], const Message& request) {
  for (const UnservedField<Message>& field : fields) {
    if (field.is_asked(request)) {
      return absl::UnimplementedError(
          absl::StrCat(field.field, ": not served by this version of the server"));
    }
  }
  return absl::OkStatus();
}

uint64_t RandomBits() {
  thread_local std::mt19937_64 generator([] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }());
  return generator();
}

std::string NewRequestId() {  // a UUID of version 4
  const uint64_t high = (RandomBits() & ~uint64_t{0xF000}) | 0x4000;
  const uint64_t low = (RandomBits() & ~(uint64_t{3} << 62)) | (uint64_t{1} << 63);
  return absl::StrFormat("%08x-%04x-%04x-%04x-%012x", high >> 32, (high >> 16) & 0xFFFF,
                         high & 0xFFFF, low >> 48, low & 0xFFFFFFFFFFFF);
}

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
  std::string truncation_field;
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
    errors->Add(field,
                absl::StrCat("must be 1...", most, " tokens long (", reason, "), not ",
                             cut.tokens.size(), "; ", rules.truncation_field, ".truncate cuts it"));
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

SamplingParams ToSampling(const v1::SamplingParams& proto, FieldErrors* errors) {
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
  params.seed = proto.has_seed() ? proto.seed() : RandomBits();
  return params;
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

void SetToken(const SampledToken& token, const Tokenizer* tokenizer, bool with_logprobs,
              v1::TokenInfo* proto) {
  SetIdAndBytes(token.id, tokenizer, proto);
  proto->set_special(tokenizer != nullptr && tokenizer->IsSpecial(token.id));
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

// All of a completion but its text and tokens.
void SetEnd(const GenerateCall& call, const RequestEnd& end, v1::Completion* proto) {
  DDL_CHECK(!end.completions.empty(), "a completion that ended OK has an end");
  const CompletionEnd& completion = end.completions.front();
  proto->set_finish_reason(ToProto(completion.finish_reason));
  if (completion.matched_stop_str.has_value()) {
    proto->set_matched_stop_str(*completion.matched_stop_str);
  } else if (completion.matched_token_id.has_value()) {
    proto->set_matched_token_id(static_cast<uint32_t>(*completion.matched_token_id));
  }
  proto->set_cumulative_logprob(completion.cumulative_logprob);
  proto->set_seed(call.params().sampling.seed);
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
    case v1::POOLING_NONE:
      return Pooling::kNone;
    default:
      errors->AddRange("params.pooling", "a value of the enum Pooling", static_cast<int>(pooling));
      return Pooling::kLastToken;
  }
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
  if (absl::Status status = CheckServed(kUnservedGenerate, request); !status.ok()) return status;
  FieldErrors errors;
  GenerateCall call;
  GenerateParams params;
  call.request.id = RequestId(request.request_id(), &errors);
  call.request.priority = ToPriority(request.priority(), &errors);
  call.request.queue_timeout = ToQueueTimeout(request, &errors);
  params.sampling = ToSampling(request.sampling(), &errors);
  params.stopping = ToStopping(request.stopping(), limits, &errors);
  params.skip_special_tokens = !request.has_skip_special_tokens() || request.skip_special_tokens();
  if (request.logprobs().has_logprobs()) {
    const uint32_t logprobs = request.logprobs().logprobs();
    if (logprobs > kMaxLogprobs) errors.AddRange("logprobs.logprobs", "0...20", logprobs);
    params.logprobs = static_cast<int32_t>(std::min(logprobs, kMaxLogprobs));
    call.with_logprobs = true;
  }
  if (request.has_stream_interval()) {
    if (request.stream_interval() == 0) errors.AddRange("stream_interval", "at least 1", 0);
    call.stream_interval = static_cast<int32_t>(
        std::min<uint32_t>(request.stream_interval(), std::numeric_limits<int32_t>::max()));
  }
  if (!params.stopping.stop.empty() && limits.tokenizer == nullptr) {
    return NoTokenizer("stopping.stop", limits);
  }

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
  call.request.params = std::move(params);
  return call;
}

absl::StatusOr<EmbedCall> ParseEmbed(const v1::EmbedRequest& request, const RequestLimits& limits) {
  if (absl::Status status = CheckServed(kUnservedEmbed, request); !status.ok()) return status;
  FieldErrors errors;
  EmbedCall call;
  EmbedParams params;
  call.request.id = RequestId(request.request_id(), &errors);
  call.request.priority = ToPriority(request.priority(), &errors);
  params.pooling = ToPooling(request.params().pooling(), &errors);
  params.normalize = !request.params().has_normalize() || request.params().normalize();
  call.encoding = ToEncoding(request.params().encoding_format(), &errors);
  if (!v1::DdlReadout_IsValid(request.params().readout())) {
    errors.AddRange("params.readout", "a value of the enum DdlReadout",
                    static_cast<int>(request.params().readout()));
  }
  if (request.params().has_dimensions()) {
    const uint32_t dimensions = request.params().dimensions();
    if (dimensions < 1 || dimensions > limits.hidden_size) {
      errors.Add("params.dimensions",
                 absl::StrCat("must be 1...", limits.hidden_size, ", not ", dimensions));
    }
    params.dimensions = static_cast<int32_t>(std::min<int64_t>(dimensions, limits.hidden_size));
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
                                        const Tokenizer* tokenizer, const WholeCompletion& whole,
                                        const RequestEnd& end) {
  v1::GenerateResponse response;
  response.set_request_id(call.request.id);
  response.set_model(model.name);
  response.set_model_version(model.version);
  response.set_system_fingerprint(model.system_fingerprint);
  v1::Completion* completion = response.add_completions();
  completion->set_text(whole.text);
  for (const SampledToken& token : whole.tokens) {
    SetToken(token, tokenizer, call.with_logprobs, completion->add_tokens());
  }
  SetEnd(call, end, completion);
  SetUsage(end.usage, response.mutable_usage());
  SetTimings(end.timings, call.tokenize, response.mutable_timings());
  return response;
}

v1::GenerateStreamResponse ToStreamStart(const GenerateCall& call, const ModelIdentity& model) {
  v1::GenerateStreamResponse response;
  response.set_request_id(call.request.id);
  v1::StreamStart* start = response.mutable_start();
  start->set_model(model.name);
  start->set_model_version(model.version);
  start->set_prompt_tokens(static_cast<uint32_t>(call.params().prompt.size()));
  start->set_system_fingerprint(model.system_fingerprint);
  return response;
}

v1::GenerateStreamResponse ToStreamDelta(const GenerateCall& call, const Tokenizer* tokenizer,
                                         const CompletionDelta& delta) {
  v1::GenerateStreamResponse response;
  response.set_request_id(call.request.id);
  response.mutable_delta()->set_text(delta.text);
  for (const SampledToken& token : delta.tokens) {
    SetToken(token, tokenizer, call.with_logprobs, response.mutable_delta()->add_tokens());
  }
  return response;
}

v1::GenerateStreamResponse ToStreamEnd(const GenerateCall& call, const RequestEnd& end) {
  v1::GenerateStreamResponse response;
  response.set_request_id(call.request.id);
  v1::StreamEnd* stream_end = response.mutable_end();
  SetEnd(call, end, stream_end->add_completions());
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
  }
  SetUsage(end.usage, response.mutable_usage());
  SetTimings(end.timings, call.tokenize, response.mutable_timings());
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
