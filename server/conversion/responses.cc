#include "server/conversion/responses.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>

#include "absl/time/time.h"
#include "base/check.h"
#include "server/conversion/proto_time.h"

namespace ddl {
namespace {

// beta = 0 leaves the state as it is, 1 erases what the key points at, 2 reflects it.
constexpr float kIdentityGate = 0.1f;
constexpr float kReflectionGate = 1.5f;

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

}  // namespace

v1::GenerateResponse ToGenerateResponse(const GenerateCall& call, const ModelIdentity& model,
                                        const Tokenizer* tokenizer, const RequestStart& start,
                                        const std::vector<CompletionResult>& results,
                                        const RequestEnd& end) {
  v1::GenerateResponse response;
  response.set_request_id(call.request.id);
  response.set_model(model.name);
  response.set_model_version(model.version);
  response.set_system_fingerprint(model.system_fingerprint);
  for (size_t i = 0; i < results.size(); ++i) {
    v1::Completion* completion = response.add_completions();
    completion->set_text(call.echo.value_or("") + results[i].text);
    for (const SampledToken& token : results[i].tokens) {
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

v1::TokenizeResponse ToTokenizeResponse(const std::vector<std::vector<Tokenizer::Token>>& lists,
                                        const Tokenizer& tokenizer) {
  v1::TokenizeResponse response;
  for (const std::vector<Tokenizer::Token>& tokens : lists) {
    v1::TokenizeResponse::TokenList* list = response.add_lists();
    for (const Tokenizer::Token& token : tokens) {
      v1::Token* proto = list->add_tokens();
      proto->set_id(static_cast<uint32_t>(token.id));
      proto->set_bytes(std::string(tokenizer.TokenBytes(token.id)));
      proto->set_start(token.start);
      proto->set_end(token.end);
      proto->set_special(tokenizer.IsSpecial(token.id));
    }
  }
  return response;
}

v1::DetokenizeResponse ToDetokenizeResponse(const DetokenizeCall& call,
                                            const Tokenizer& tokenizer) {
  v1::DetokenizeResponse response;
  for (const std::vector<TokenId>& tokens : call.sequences) {
    response.add_texts(tokenizer.Decode(tokens, call.skip_special_tokens));
  }
  return response;
}

}  // namespace ddl
