#ifndef DDL_SERVER_ENGINE_CALL_H_
#define DDL_SERVER_ENGINE_CALL_H_

#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/engine/request.h"
#include "server/reply_thread.h"

namespace ddl {

// A call that the engine works on, whatever carries it: nothing here knows gRPC, so that the
// threads of calls can be tested under ThreadSanitizer, which does not see into the system's gRPC.
//
// The call is shared with the engine, as its sink, and holds itself until its transport is done
// with it.
class EngineCall : public RequestSink, public std::enable_shared_from_this<EngineCall> {
 protected:
  // `replies` outlives the call.
  explicit EngineCall(ReplyThread& replies) : replies_(replies) {}

  // Until Release. Before anything else.
  void Hold() { self_ = shared_from_this(); }
  // The transport's last word; `this` may be gone afterwards.
  void Release();

  // `engine` outlives the call. As Engine::Submit.
  absl::Status Submit(Engine& engine, const Request& request);

  // The transport's side may call these only after Submit has returned.
  void CancelInEngine();
  void ResumeInEngine();

  // Runs `function` on the reply thread, with this call alive.
  template <typename Function>
  void Reply(Function function) {
    replies_.Post(
        [self = shared_from_this(), function = std::move(function)]() mutable { function(); });
  }

 private:
  ReplyThread& replies_;
  std::shared_ptr<EngineCall> self_;
  // Constant after Submit.
  Engine* engine_ = nullptr;
  std::optional<RequestHandle> handle_;
  absl::Time deadline_ = absl::InfiniteFuture();
};

}  // namespace ddl

#endif  // DDL_SERVER_ENGINE_CALL_H_
