#ifndef DDL_SERVER_RPC_ENGINE_CALL_H_
#define DDL_SERVER_RPC_ENGINE_CALL_H_

#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "server/engine/engine.h"
#include "server/engine/request.h"
#include "server/rpc/reply_thread.h"

namespace ddl {

// A call that the engine works on, whatever carries it: nothing here knows gRPC, so that the
// threads of calls can be tested under ThreadSanitizer, which does not see into the system's gRPC.
//
// The call is shared with the engine, as its sink, and holds itself until its transport is done
// with it.
class EngineCall : public RequestSink, public std::enable_shared_from_this<EngineCall> {
 protected:
  // `replies` outlives the call. The engine's on_delivered wakes it.
  explicit EngineCall(ReplyThread& replies) : replies_(replies) {}

  // Until Release. Before anything else.
  void Hold() { self_ = shared_from_this(); }
  // The transport's last word; `this` may be gone afterwards.
  void Release();

  // `engine` outlives the call. As Engine::Submit; CANCELLED after CancelInEngine.
  absl::Status Submit(Engine& engine, const Request& request);

  // The transport's side, at any time.
  void CancelInEngine();
  void ResumeInEngine();

  // Runs `function` on the reply thread, with this call alive. Called as a sink.
  template <typename Function>
  void Reply(Function function) {
    replies_.Post(
        [self = shared_from_this(), function = std::move(function)]() mutable { function(); });
  }

 private:
  ReplyThread& replies_;
  std::shared_ptr<EngineCall> self_;

  Mutex mu_;  // held while the request is submitted: what the engine brings may be ahead of it
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  Engine* engine_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::optional<RequestHandle> handle_ ABSL_GUARDED_BY(mu_);
  absl::Time deadline_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_ENGINE_CALL_H_
