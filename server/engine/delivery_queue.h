#ifndef DDL_SERVER_ENGINE_DELIVERY_QUEUE_H_
#define DDL_SERVER_ENGINE_DELIVERY_QUEUE_H_

#include <utility>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "server/engine/active_request.h"
#include "server/engine/observer.h"
#include "server/engine/request.h"

namespace ddl {

// What steps have brought and sinks have not been given yet, in order. It waits while the next step
// is begun, so that clients are served while that is computed. The step thread alone.
class DeliveryQueue {
 public:
  bool empty() const { return deliveries_.empty(); }

  void AddStart(ActiveRequest& request, RequestStart start) { Add(request, std::move(start)); }
  // `latency`: since the request came for the `first` token of a completion, or since the token
  // before.
  void AddToken(ActiveRequest& request, RequestPart& part, bool first, absl::Duration latency) {
    Add(request, Token{&part, first, latency});
  }
  void AddEmbedding(ActiveRequest& request, InputEmbedding embedding) {
    Add(request, std::move(embedding));
  }
  void AddScore(ActiveRequest& request, InputScore score) { Add(request, std::move(score)); }

  // Gives the sinks all of it, and the observer the tokens. `on_full` is called when a sink that
  // has taken a delta is full.
  void Deliver(EngineObserver* observer, absl::FunctionRef<void(ActiveRequest&)> on_full);

 private:
  // What there is of a part's completion by the time of the delivery.
  struct Token {
    RequestPart* part = nullptr;
    bool first = false;
    absl::Duration latency;
  };
  struct Delivery {
    ActiveRequest* request = nullptr;
    std::variant<RequestStart, Token, InputEmbedding, InputScore> what;
  };

  template <typename What>
  void Add(ActiveRequest& request, What what) {
    deliveries_.push_back({&request, std::move(what)});
  }
  static void DeliverToken(ActiveRequest& request, const Token& token, EngineObserver* observer,
                           absl::FunctionRef<void(ActiveRequest&)> on_full);

  std::vector<Delivery> deliveries_;
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_DELIVERY_QUEUE_H_
