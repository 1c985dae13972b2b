#include "server/conversion/sampling_checks.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/random_ids.h"
#include "server/conversion/input_tokens.h"

namespace ddl {
namespace {

constexpr int kMaxStopStrings = 64;
constexpr size_t kMaxStopBytes = 1024;
constexpr int kMaxStopTokenIds = 256;
constexpr uint32_t kMaxLogprobs = 20;
constexpr uint32_t kMaxCompletions = 16;
constexpr float kMaxLogitBias = 100;

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

}  // namespace

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

int32_t ToLogprobs(const char* field, bool is_set, uint32_t logprobs, FieldErrors* errors) {
  if (!is_set) return -1;
  if (logprobs > kMaxLogprobs) errors->AddRange(field, "0...20", logprobs);
  return static_cast<int32_t>(std::min(logprobs, kMaxLogprobs));
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

}  // namespace ddl
