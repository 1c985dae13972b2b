#ifndef DDL_SERVER_RPC_STREAM_CALL_H_
#define DDL_SERVER_RPC_STREAM_CALL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/rpc/engine_call.h"
#include "server/rpc/outbox.h"

namespace ddl {

// What a stream's call needs to know before its request is submitted.
struct StreamShape {
  int32_t num_completions = 1;
  int64_t stream_interval = 1;      // tokens of an event
  std::optional<std::string> echo;  // goes before each completion's text
  // An ended stream waits this long, and again as long as the client took something meanwhile, for
  // a client that takes nothing.
  absl::Duration end_grace = absl::Seconds(1);
};

// A stream: gathers what the engine brings into events, has them made on the reply thread, and
// gives them to the transport as fast as it takes them. Of a client that reads slower than the
// model writes the outbox fills: then the engine pauses the request until it has drained, and
// after slow_reader_timeout ends it. Whatever ended the stream, a client that goes on taking
// nothing loses the call.
//
// Derived makes the events and is the transport.
template <typename Event>
class StreamCall : public EngineCall {
 public:
  // The step thread.
  void OnStart(RequestStart start) override {
    outbox_->Announce(1);
    Reply([this, start = std::move(start)] {
      outbox_->Push(MakeStart(start));
      Advance();
    });
    if (!shape_.echo.has_value()) return;
    for (int32_t i = 0; i < shape_.num_completions; ++i) {
      Send({.index = i, .text = *shape_.echo, .tokens = {}});
    }
  }
  SinkState OnDelta(CompletionDelta delta) override {
    CompletionDelta& gathered = gathered_[delta.index];
    gathered.text += delta.text;
    std::move(delta.tokens.begin(), delta.tokens.end(), std::back_inserter(gathered.tokens));
    if (static_cast<int64_t>(gathered.tokens.size()) >= shape_.stream_interval) {
      SendGathered(delta.index);
    }
    return outbox_->full() ? SinkState::kFull : SinkState::kReady;
  }
  void OnEmbedding(InputEmbedding /*embedding*/) override {}
  void OnScore(InputScore /*score*/) override {}
  void OnEnd(RequestEnd end) override {
    if (end.status.ok()) {
      for (const CompletionDelta& gathered : gathered_) {
        if (!(gathered.text.empty() && gathered.tokens.empty())) SendGathered(gathered.index);
      }
      outbox_->Announce(1);
    }
    Reply([this, end = std::move(end)] {
      if (end.status.ok()) outbox_->Push(MakeEnd(end));
      outbox_->Close(end.status);
      AwaitClient();
      Advance();
    });
  }

 protected:
  // Events that the engine has brought and the transport has not taken, for each completion: at so
  // many the request is paused. At half of it it goes on.
  static constexpr int64_t kFullOutbox = 64;

  using EngineCall::EngineCall;

  // Before Submit.
  void Begin(StreamShape shape) {
    shape_ = std::move(shape);
    outbox_.emplace(kFullOutbox * shape_.num_completions);
    for (int32_t i = 0; i < shape_.num_completions; ++i) {
      gathered_.push_back({.index = i, .text = "", .tokens = {}});
    }
  }

  // The transport reports, on threads of its own, after Submit has returned: what WriteEvent gave
  // was taken, or, not `ok`, will not be, nor anything that follows.
  void OnTaken(bool ok) {
    if (outbox_->Taken(ok)) ResumeInEngine();
    Advance();
  }
  // And that the time of CallOnGraceOver has come.
  void OnGraceOver() {
    if (outbox_->num_taken() == num_taken_before_.load()) {
      Drop();
    } else {
      AwaitClient();
    }
  }

  // The events. On the reply thread.
  virtual Event MakeStart(const RequestStart& start) = 0;
  virtual Event MakeDelta(const CompletionDelta& delta) = 0;
  virtual Event MakeEnd(const RequestEnd& end) = 0;

  // The transport. Any thread; WriteEvent and FinishStream one at a time.
  // Returns at once, and is followed by one OnTaken. `event` lives until then.
  virtual void WriteEvent(const Event& event) = 0;
  virtual void FinishStream(const absl::Status& status) = 0;  // once, after which nothing follows
  // Calls OnGraceOver after so long, unless the transport is done with the call by then.
  virtual void CallOnGraceOver(absl::Duration delay) = 0;
  // Ends the call on its client, who takes nothing: the transport is to be done with it soon.
  virtual void Drop() = 0;

 private:
  void SendGathered(int32_t index) {
    Send(std::exchange(gathered_[index], {.index = index, .text = "", .tokens = {}}));
  }

  void Send(CompletionDelta delta) {
    outbox_->Announce(1);
    Reply([this, delta = std::move(delta)] {
      outbox_->Push(MakeDelta(delta));
      Advance();
    });
  }

  void Advance() {
    const auto action = outbox_->Next();
    if (const auto* write = std::get_if<typename Outbox<Event>::Write>(&action)) {
      WriteEvent(*write->event);
    } else if (const auto* end = std::get_if<typename Outbox<Event>::End>(&action)) {
      FinishStream(end->status);
    }
  }

  void AwaitClient() {
    num_taken_before_ = outbox_->num_taken();
    CallOnGraceOver(shape_.end_grace);
  }

  // Constant after Begin.
  StreamShape shape_;

  // The step thread: by index, until stream_interval tokens are there.
  std::vector<CompletionDelta> gathered_;
  std::optional<Outbox<Event>> outbox_;
  std::atomic<int64_t> num_taken_before_ = 0;  // when CallOnGraceOver was last called
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_STREAM_CALL_H_
