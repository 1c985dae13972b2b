#ifndef DDL_SERVER_RPC_OUTBOX_H_
#define DDL_SERVER_RPC_OUTBOX_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/check.h"
#include "base/mutex.h"

namespace ddl {

// The events of a stream on their way from whoever makes them to a transport that takes one at a
// time, then the stream's end. It is full when the transport is far behind.
//
// Thread-safe. After Push, Close and Taken the caller asks Next, and does what it says: of any
// number of threads that ask, one is told to write, or to end, at a time.
template <typename Event>
class Outbox {
 public:
  // Hand this event to the transport, and call Taken when it has taken it. It stays where it is
  // until then.
  struct Write {
    const Event* event;
  };
  // The stream ends with this status; nothing follows.
  struct End {
    absl::Status status;
  };
  using Action = std::variant<std::monostate, Write, End>;

  // Full from `capacity` events on, until half of it.
  explicit Outbox(int64_t capacity) : capacity_(capacity) {}

  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;

  // So many events will be pushed. They count from now on: whoever makes them may be behind too.
  void Announce(int64_t events) {
    const MutexLock lock(mu_);
    num_untaken_ += events;
    full_ = full_ || num_untaken_ >= capacity_;
  }

  void Push(Event event) {
    const MutexLock lock(mu_);
    DDL_CHECK(!end_.has_value(), "an event after the end");
    events_.push_back(std::move(event));
  }

  // Once: no event follows. The stream ends with `status` when the events before have been taken;
  // with a failure at once, and they are dropped.
  void Close(absl::Status status) {
    const MutexLock lock(mu_);
    DDL_CHECK(!end_.has_value(), "a stream is closed once");
    if (!status.ok()) events_.clear();
    end_ = std::move(status);
  }

  // The transport is done with the event of the last Write; not `ok`: it takes no more, and what
  // is left is dropped. True when the outbox was full and has drained.
  bool Taken(bool ok) {
    const MutexLock lock(mu_);
    DDL_CHECK(writing_, "taken what was not given");
    writing_ = false;
    broken_ = broken_ || !ok;
    ++num_taken_;
    --num_untaken_;
    const bool drained = full_ && num_untaken_ <= capacity_ / 2;
    if (drained) full_ = false;
    return drained;
  }

  Action Next() {
    const MutexLock lock(mu_);
    if (writing_ || ended_) return {};
    if (broken_) events_.clear();
    if (!events_.empty()) {
      writing_ = true;
      event_ = std::move(events_.front());
      events_.pop_front();
      return Write{&event_};
    }
    if (!end_.has_value()) return {};
    ended_ = true;
    // A client that did not get all of it has given up, whatever the end was to be.
    if (broken_ && end_->ok()) return End{absl::CancelledError("the client went away")};
    return End{*end_};
  }

  bool full() const {
    const MutexLock lock(mu_);
    return full_;
  }
  // Events that the transport has taken so far.
  int64_t num_taken() const {
    const MutexLock lock(mu_);
    return num_taken_;
  }

 private:
  const int64_t capacity_;

  mutable Mutex mu_;
  std::deque<Event> events_ ABSL_GUARDED_BY(mu_);
  Event event_;  // guarded by mu_ but while writing_, when it is the transport's to read
  int64_t num_untaken_ ABSL_GUARDED_BY(mu_) = 0;  // announced, not taken
  int64_t num_taken_ ABSL_GUARDED_BY(mu_) = 0;
  bool full_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ddl

#endif  // DDL_SERVER_RPC_OUTBOX_H_
