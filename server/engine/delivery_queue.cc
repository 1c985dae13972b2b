#include "server/engine/delivery_queue.h"

namespace ddl {

void DeliveryQueue::Deliver(EngineObserver* observer,
                            absl::FunctionRef<void(ActiveRequest&)> on_full) {
  for (Delivery& delivery : deliveries_) {
    ActiveRequest& request = *delivery.request;
    if (const auto* token = std::get_if<Token>(&delivery.what)) {
      DeliverToken(request, *token, observer, on_full);
    } else if (auto* start = std::get_if<RequestStart>(&delivery.what)) {
      request.sink->OnStart(std::move(*start));
    } else if (auto* embedding = std::get_if<InputEmbedding>(&delivery.what)) {
      request.sink->OnEmbedding(std::move(*embedding));
    } else {
      request.sink->OnScore(std::get<InputScore>(std::move(delivery.what)));
    }
  }
  deliveries_.clear();
}

void DeliveryQueue::DeliverToken(ActiveRequest& request, const Token& token,
                                 EngineObserver* observer,
                                 absl::FunctionRef<void(ActiveRequest&)> on_full) {
  observer->OnGeneratedTokens(1);
  if (token.first) {
    observer->OnTimeToFirstToken(token.latency);
  } else {
    observer->OnInterTokenLatency(token.latency);
  }
  CompletionDelta delta = token.part->completion->TakeDelta();
  if (delta.text.empty() && delta.tokens.empty()) return;
  if (request.sink->OnDelta(std::move(delta)) == SinkState::kFull) on_full(request);
}

}  // namespace ddl
