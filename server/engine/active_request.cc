#include "server/engine/active_request.h"

#include <cstddef>
#include <utility>
#include <variant>

#include "base/check.h"

namespace ddl {
namespace {

// Adds the parts of a request, which has all else.
class PartMaker {
 public:
  PartMaker(ActiveRequest* request, const EngineOptions& options, const ModelDescription& model,
            const Tokenizer* tokenizer)
      : request_(*request), options_(options), model_(model), tokenizer_(tokenizer) {}

  void operator()(GenerateParams& generate) {
    request_.task = Task::kGenerate;
    request_.ddl_stats = generate.ddl_stats;
    request_.wants_prompt_scores = generate.prompt_logprobs >= 0;
    const int32_t max_tokens = static_cast<int32_t>(generate.prompt.size()) +
                               generate.MaxNewTokens(options_.max_context_length);
    request_.longest_sequence = max_tokens - 1;  // the last token is sampled, but never computed
    const bool shares = generate.n > 1 && !generate.ddl_stats;
    for (int32_t i = 0; i < generate.n; ++i) {
      // Something is wanted of every position of the first one's prompt.
      const bool whole = generate.ddl_stats || (i == 0 && request_.wants_prompt_scores);
      RequestPart& part =
          AddPart(generate.prompt, {.generates = true,
                                    .max_tokens = max_tokens,
                                    .reads_prefix_cache = generate.use_prefix_cache && !whole,
                                    .group = shares ? &request_.group : nullptr,
                                    .shares_prompt = shares && !whole});
      part.completion.emplace(generate, i,
                              Completion::Limits{.max_context_length = options_.max_context_length,
                                                 .vocab_size = VocabSize(model_, tokenizer_),
                                                 .eos_token_ids = options_.eos_token_ids},
                              tokenizer_);
      if (i == 0) part.score_logprobs = generate.prompt_logprobs;
    }
  }

  void operator()(EmbedParams& embed) {
    request_.task = Task::kEmbed;
    request_.ddl_stats = embed.ddl_stats;
    request_.readout = embed.readout;
    const Pooler pooler(
        {.pooling = embed.pooling, .normalize = embed.normalize, .dimensions = embed.dimensions},
        embed.readout.Width(model_.hidden_size, model_.value_channels));
    // Reading another vector than the LM head's may itself need the states of earlier positions
    // (TC compresses over tokens), which no block keeps.
    const bool any_position_alone =
        embed.readout.kind == HiddenReadout::Kind::kFinalNorm && !embed.readout.layer.has_value();
    for (std::vector<TokenId>& input : embed.inputs) {
      AddInput(std::move(input), {.reads_prefix_cache = embed.pooling == Pooling::kLastToken &&
                                                        any_position_alone && !embed.ddl_stats})
          .pooler = pooler;
    }
  }

  void operator()(ScoreParams& score) {
    request_.task = Task::kScore;
    for (std::vector<TokenId>& input : score.inputs) {
      AddInput(std::move(input), {}).score_logprobs = 0;
    }
  }

 private:
  RequestPart& AddInput(std::vector<TokenId> tokens, const SequenceOptions& options) {
    request_.longest_sequence =
        std::max(request_.longest_sequence, static_cast<int64_t>(tokens.size()));
    return AddPart(std::move(tokens), options);
  }
  RequestPart& AddPart(std::vector<TokenId> tokens, const SequenceOptions& options) {
    DDL_CHECK(static_cast<int64_t>(tokens.size()) + (options.generates ? 1 : 0) <=
                  options_.max_context_length,
              "an input longer than the context");
    const SequenceRank rank = {
        .priority = request_.priority, .request_id = request_.id, .index = request_.parts_left++};
    RequestPart& part = request_.parts.emplace_back();
    part.sequence = std::make_unique<Sequence>(rank, std::move(tokens), options);
    return part;
  }

  ActiveRequest& request_;
  const EngineOptions& options_;
  const ModelDescription& model_;
  const Tokenizer* const tokenizer_;
};

}  // namespace

std::unique_ptr<ActiveRequest> MakeActiveRequest(Request request, uint64_t id,
                                                 std::shared_ptr<RequestSink> sink,
                                                 const EngineOptions& options,
                                                 const ModelDescription& model,
                                                 const Tokenizer* tokenizer, absl::Time now) {
  auto active = std::make_unique<ActiveRequest>();
  active->id = id;
  active->priority = request.priority;
  active->submitted = now;
  active->start_by = now + request.queue_timeout;
  active->deadline = request.deadline;
  active->ages_at = now + options.priority_aging;
  active->sink = std::move(sink);
  active->prompt_tokens = request.NumInputTokens();
  std::visit(PartMaker(active.get(), options, model, tokenizer), request.params);
  DDL_CHECK(active->parts_left > 0, "a request without inputs");
  return active;
}

TokenId VocabSize(const ModelDescription& model, const Tokenizer* tokenizer) {
  const auto rows = static_cast<TokenId>(model.vocab_size);
  return tokenizer != nullptr ? std::min(rows, tokenizer->vocab_size()) : rows;
}

void RequestPart::Restart() {
  scored.clear();
  ddl_stats.clear();
  if (pooler.has_value()) pooler->Reset();
}

void RequestPart::AppendStats(const ChunkOutput& output, int64_t num_sublayers) {
  if (output.beta.empty()) return;  // a model without the delta rule
  ddl_stats.resize(num_sublayers);
  const auto positions = static_cast<int64_t>(output.beta.size()) / num_sublayers;
  for (int64_t i = 0; i < num_sublayers; ++i) {
    const auto append = [&](const std::vector<float>& from, std::vector<float>* to) {
      to->insert(to->end(), from.begin() + i * positions, from.begin() + (i + 1) * positions);
    };
    append(output.beta, &ddl_stats[i].beta);
    append(output.update_ratio, &ddl_stats[i].update_ratio);
  }
}

int64_t ActiveRequest::num_generated() const {
  int64_t tokens = 0;
  for (const RequestPart& part : parts) {
    if (part.completion.has_value()) tokens += part.completion->num_tokens();
  }
  return tokens;
}

ActiveRequest::Timeouts ActiveRequest::timeouts(absl::Duration slow_reader_timeout) const {
  Timeouts timeouts = {.deadline = deadline};
  if (!started.has_value()) timeouts.queue = start_by;
  if (paused.has_value()) timeouts.slow_reader = *paused + slow_reader_timeout;
  return timeouts;
}

void ActiveRequest::Finish(absl::Status status, EndReason reason, absl::Time now,
                           absl::Time noticed) {
  const absl::Time started_at = started.value_or(now);
  const absl::Time first_token_at = first_token.value_or(now);
  const int64_t generated = num_generated();

  finished.task = task;
  finished.reason = reason;
  finished.prompt_tokens = prompt_tokens;
  finished.generated_tokens = generated;
  finished.queue = NotNegative(started_at - submitted);
  finished.prefill = NotNegative(first_token_at - started_at);
  finished.decode = NotNegative(now - first_token_at);
  if (reason == EndReason::kCancel || reason == EndReason::kDeadline) {
    finished.cancel_latency = NotNegative(now - noticed);
  }

  RequestEnd& request_end = end.emplace();
  if (status.ok()) {
    for (RequestPart& part : parts) {
      if (part.end.has_value()) request_end.completions.push_back(*std::move(part.end));
      if (!part.ddl_stats.empty()) request_end.ddl_stats.push_back(std::move(part.ddl_stats));
    }
  }
  request_end.status = std::move(status);
  request_end.usage = {.prompt_tokens = prompt_tokens,
                       .completion_tokens = generated,
                       .cached_tokens = cached_tokens};
  request_end.timings.queue = finished.queue;
  request_end.timings.prefill = finished.prefill;
  request_end.timings.decode = finished.decode;
  if (first_token.has_value()) {
    request_end.timings.time_to_first_token = NotNegative(first_token_at - submitted);
  }
  request_end.timings.preemptions = preemptions;
}

EndReason ToEndReason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return EndReason::kStop;
    case FinishReason::kEos:
      return EndReason::kEos;
    case FinishReason::kLength:
      return EndReason::kLength;
    case FinishReason::kContext:
      return EndReason::kContext;
  }
  return EndReason::kStop;
}

WasteReason ToWasteReason(EndReason reason) {
  switch (reason) {
    case EndReason::kCancel:
      return WasteReason::kCancel;
    case EndReason::kDeadline:
      return WasteReason::kDeadline;
    default:
      return WasteReason::kError;
  }
}

}  // namespace ddl
