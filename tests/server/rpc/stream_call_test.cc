// Streams over a real engine with its own thread, with an in-process transport in the place of
// gRPC: clients that read, read late, cancel, go away, or never read. Built to be run under
// ThreadSanitizer, which cannot see into the system's gRPC.

#include "server/rpc/stream_call.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "server/engine/scheduler.h"
#include "server/rpc/reply_thread.h"
#include "tests/server/engine/engine_fixture.h"
#include "tests/server/engine/started_engine.h"

namespace ddl {
namespace {

struct Event {
  char kind = ' ';  // start, delta or end: its first letter
  int32_t index = 0;
  std::string text = {};
  std::vector<TokenId> ids = {};
};

class InProcessStream;

// Calls OnGraceOver when it is due, on a thread of its own.
class Alarms {
 public:
  Alarms() : thread_([this] { Run(); }) {}
  ~Alarms() {
    {
      const MutexLock lock(mu_);
      stopping_ = true;
      changed_.NotifyAll();
    }
    thread_.join();
  }
  void Set(absl::Time due, std::weak_ptr<InProcessStream> stream) {
    const MutexLock lock(mu_);
    due_.emplace(due, std::move(stream));
    changed_.NotifyAll();
  }

 private:
  void Run();

  Mutex mu_;
  CondVar changed_;
  std::multimap<absl::Time, std::weak_ptr<InProcessStream>> due_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// How many streams exist.
std::atomic<int> num_streams = 0;

// A stream, and its transport, whose client is the test's.
class InProcessStream final : public StreamCall<Event> {
 public:
  InProcessStream(ReplyThread& replies, Alarms& alarms) : StreamCall(replies), alarms_(alarms) {
    ++num_streams;
  }
  ~InProcessStream() override { --num_streams; }

  static std::shared_ptr<InProcessStream> Start(ReplyThread& replies, Alarms& alarms,
                                                Engine& engine, const Request& request,
                                                const StreamShape& shape) {
    auto stream = std::make_shared<InProcessStream>(replies, alarms);
    stream->Hold();
    stream->Begin(shape);
    const absl::Status status = stream->Submit(engine, request);
    if (!status.ok()) stream->FinishStream(status);
    return stream;
  }

  // The client's side, on any thread but the engine's. Waits for the next event, which stays until
  // Take; null: the stream has ended, or has been dropped.
  const Event* Await() {
    const MutexLock lock(mu_);
    while (offered_ == nullptr && !end_.has_value() && !dropped_) changed_.Wait(mu_);
    return dropped_ ? nullptr : offered_;
  }
  // Takes the event that was awaited.
  void Take(bool ok) {
    {
      const MutexLock lock(mu_);
      offered_ = nullptr;
    }
    OnTaken(ok);
  }
  void Cancel() { CancelInEngine(); }
  // Fails the event that is offered, if any, as a transport does whose call is over.
  void GoAway() {
    bool offered = false;
    {
      const MutexLock lock(mu_);
      gone_ = true;
      offered = std::exchange(offered_, nullptr) != nullptr;
    }
    CancelInEngine();
    if (offered) OnTaken(false);
  }
  absl::Status AwaitEnd() {
    const MutexLock lock(mu_);
    while (!end_.has_value()) changed_.Wait(mu_);
    return *end_;
  }
  // After the end: the transport is done.
  void Done() { Release(); }
  bool dropped() const {
    const MutexLock lock(mu_);
    return dropped_;
  }
  // Waits until it has been dropped.
  void AwaitDrop() {
    const MutexLock lock(mu_);
    while (!dropped_) changed_.Wait(mu_);
  }
  using StreamCall::OnGraceOver;

 private:
  Event MakeStart(const RequestStart& /*start*/) override { return {.kind = 's'}; }
  Event MakeDelta(const CompletionDelta& delta) override {
    Event event{.kind = 'd', .index = delta.index, .text = delta.text};
    for (const SampledToken& token : delta.tokens) event.ids.push_back(token.id);
    return event;
  }
  Event MakeEnd(const RequestEnd& /*end*/) override { return {.kind = 'e'}; }

  void WriteEvent(const Event& event) override {
    bool gone = false;
    {
      const MutexLock lock(mu_);
      EXPECT_EQ(offered_, nullptr) << "two events at a time";
      EXPECT_FALSE(end_.has_value()) << "an event after the end";
      gone = gone_;
      if (!gone) offered_ = &event;
      changed_.NotifyAll();
    }
    if (gone) OnTaken(false);
  }
  void FinishStream(const absl::Status& status) override {
    const MutexLock lock(mu_);
    EXPECT_EQ(offered_, nullptr) << "the end before the last event was taken";
    EXPECT_FALSE(end_.has_value()) << "two ends";
    end_ = status;
    changed_.NotifyAll();
  }
  void CallOnGraceOver(absl::Duration delay) override {
    alarms_.Set(absl::Now() + delay, std::static_pointer_cast<InProcessStream>(shared_from_this()));
  }
  void Drop() override {
    const MutexLock lock(mu_);
    dropped_ = true;
    changed_.NotifyAll();
  }

  Alarms& alarms_;
  mutable Mutex mu_;
  CondVar changed_;
  const Event* offered_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool gone_ ABSL_GUARDED_BY(mu_) = false;
  bool dropped_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
};

void Alarms::Run() {
  for (;;) {
    std::shared_ptr<InProcessStream> stream;
    {
      const MutexLock lock(mu_);
      if (stopping_) return;
      if (due_.empty()) {
        changed_.Wait(mu_);
        continue;
      }
      if (absl::Now() < due_.begin()->first) {
        changed_.WaitUntil(mu_, absl::ToChronoTime(due_.begin()->first));
        continue;
      }
      stream = due_.begin()->second.lock();
      due_.erase(due_.begin());
    }
    if (stream != nullptr) stream->OnGraceOver();
  }
}

enum Behaviour { kReads, kReadsLate, kCancels, kGoesAway, kNeverReads, kExpires, kNumBehaviours };
constexpr std::array<const char*, kNumBehaviours> kNames = {"read",      "read late",  "cancelled",
                                                            "went away", "never read", "expired"};

// A context that takes several outboxes to fill.
FakeModelRunner::Options Model(int32_t steps_in_flight) {
  return {.kv_block_size = 16,
          .kv_num_blocks = 160,
          .max_sequences = SlotsFor(4),
          .max_step_tokens = 64,
          .max_in_flight_steps = steps_in_flight};
}

// Of steps that may be in flight at a time.
class StreamCallTest : public testing::TestWithParam<int32_t> {};

EngineOptions Options(absl::Duration slow_reader_timeout, ReplyThread& replies) {
  return {.max_running_sequences = 4,
          .max_step_tokens = 64,
          .max_context_length = 512,
          .slow_reader_timeout = slow_reader_timeout,
          .on_delivered = [&replies] { replies.Wake(); }};
}

// What a client took.
struct Received {
  std::string kinds;  // each repeated kind once
  std::map<int32_t, std::vector<TokenId>> ids;
  std::map<int32_t, std::string> text;

  void Add(const Event& event) {
    if (kinds.empty() || kinds.back() != event.kind) kinds += event.kind;
    if (event.kind != 'd') return;
    text[event.index] += event.text;
    ids[event.index].insert(ids[event.index].end(), event.ids.begin(), event.ids.end());
  }
};

TEST_P(StreamCallTest, AnyMixtureOfClients) {
  constexpr int kThreads = 8;
  constexpr int kStreams = 36;  // of each thread
  AtomicObserver observer;
  std::atomic<int64_t> received_tokens = 0;
  std::array<std::map<absl::StatusCode, std::atomic<int>>, kNumBehaviours> outcomes;
  for (auto& outcome : outcomes) {
    for (const auto code :
         {absl::StatusCode::kOk, absl::StatusCode::kCancelled, absl::StatusCode::kDeadlineExceeded,
          absl::StatusCode::kResourceExhausted}) {
      outcome[code] = 0;
    }
  }
  std::atomic<int> drops = 0;
  {
    ReplyThread replies;
    const auto engine =
        StartedEngine(&observer, Model(GetParam()), Options(absl::Seconds(1), replies));
    Alarms alarms;
    std::vector<std::thread> clients;
    for (int t = 0; t < kThreads; ++t) {
      clients.emplace_back([&, t] {
        std::mt19937 random(t);
        for (int i = 0; i < kStreams; ++i) {
          const auto behaviour = static_cast<Behaviour>((t + i) % kNumBehaviours);
          const auto n = static_cast<int32_t>(1 + random() % 2);
          const int count = behaviour == kReads ? 1 + static_cast<int>(random() % 100) : 400;
          const std::vector<TokenId> prompt = Prompt(static_cast<int32_t>(1 + random() % 20), i);
          Request request = Generate(prompt, count);
          ParamsOf(request).n = n;
          if (behaviour == kExpires) {
            request.deadline = absl::Now() + absl::Milliseconds(1 + random() % 5);
          }
          StreamShape shape = {.num_completions = n,
                               .stream_interval = static_cast<int64_t>(1 + random() % 3),
                               .echo = std::nullopt,
                               .end_grace = absl::Milliseconds(20)};
          if (random() % 3 == 0) shape.echo = "echo";
          // In the time of a client that reads late nothing may drop its stream.
          if (behaviour == kReadsLate || behaviour == kReads) shape.end_grace = absl::Minutes(1);
          const int64_t stalls = observer.stalls;
          const auto stream = InProcessStream::Start(replies, alarms, *engine, request, shape);

          Received received;
          if (behaviour == kReadsLate) {
            // Not before the engine had to pause somebody; its own turn may come before that.
            const absl::Time patience = absl::Now() + absl::Milliseconds(100);
            while (observer.stalls == stalls && absl::Now() < patience) std::this_thread::yield();
          }
          if (behaviour == kNeverReads) {
            stream->AwaitDrop();
            stream->GoAway();
          }
          std::thread canceller;
          const auto stop_at = static_cast<int>(random() % 50);
          for (int taken = 0; behaviour != kNeverReads; ++taken) {
            const Event* event = stream->Await();
            if (event == nullptr) break;
            if (taken == stop_at && behaviour == kGoesAway) {
              stream->GoAway();
              break;
            }
            if (taken == stop_at && behaviour == kCancels) {
              canceller = std::thread([&stream] { stream->Cancel(); });
            }
            received.Add(*event);
            stream->Take(true);
          }
          if (stream->dropped()) stream->GoAway();
          const absl::Status status = stream->AwaitEnd();
          if (canceller.joinable()) canceller.join();
          stream->Done();

          drops += stream->dropped();
          const auto outcome = outcomes[behaviour].find(status.code());
          ASSERT_NE(outcome, outcomes[behaviour].end()) << kNames[behaviour] << ": " << status;
          ++outcome->second;
          EXPECT_EQ(status.ok(), received.kinds.ends_with('e')) << received.kinds << status;
          if (status.ok()) {
            EXPECT_EQ(received.kinds, "sde");
          }
          for (int32_t k = 0; k < n; ++k) {
            const std::vector<TokenId> expected = ExpectedTokens(prompt, count);
            std::vector<TokenId>& ids = received.ids[k];
            ASSERT_LE(ids.size(), expected.size());
            if (status.ok()) {
              EXPECT_EQ(ids.size(), expected.size());
            }
            EXPECT_TRUE(std::equal(ids.begin(), ids.end(), expected.begin()));
            if (shape.echo.has_value() && !ids.empty()) {
              EXPECT_TRUE(received.text[k].starts_with("echo"));
            }
            received_tokens += static_cast<int64_t>(ids.size());
          }
        }
      });
    }
    for (std::thread& client : clients) client.join();
    EXPECT_TRUE(engine->WaitUntilIdle(absl::Now() + absl::Minutes(1)));
    EXPECT_EQ(observer.running, 0);
    EXPECT_EQ(observer.waiting, 0);
    EXPECT_EQ(observer.blocks_used, 0);
  }
  EXPECT_EQ(num_streams, 0) << "a stream outlived its transport and its engine";
  EXPECT_LE(received_tokens, observer.generated);

  const auto of = [&](Behaviour behaviour, absl::StatusCode code) {
    return outcomes[behaviour][code].load();
  };
  constexpr int kOfEach = kThreads * kStreams / kNumBehaviours;
  EXPECT_EQ(of(kReads, absl::StatusCode::kOk), kOfEach);
  EXPECT_EQ(of(kGoesAway, absl::StatusCode::kOk), 0);
  EXPECT_EQ(of(kNeverReads, absl::StatusCode::kOk), 0);
  EXPECT_GT(of(kNeverReads, absl::StatusCode::kResourceExhausted), 0);
  EXPECT_GT(of(kReadsLate, absl::StatusCode::kOk), 0);
  EXPECT_GT(of(kCancels, absl::StatusCode::kCancelled), 0);
  EXPECT_GT(of(kExpires, absl::StatusCode::kDeadlineExceeded), 0);
  EXPECT_GE(drops, of(kNeverReads, absl::StatusCode::kResourceExhausted));
  EXPECT_GT(observer.stalls, 0);
  for (int behaviour = 0; behaviour < kNumBehaviours; ++behaviour) {
    std::cout << kNames[behaviour] << ":";
    for (const auto& [code, count] : outcomes[behaviour]) {
      if (count > 0) std::cout << " " << count << " " << absl::StatusCodeToString(code);
    }
    std::cout << "\n";
  }
  std::cout << observer.stalls << " stalls, " << drops << " dropped, " << observer.preemptions
            << " preemptions, " << observer.steps << " steps\n";
}

// A client that reads late finds all of it, and the engine made no more than the outbox holds
// meanwhile.
TEST_P(StreamCallTest, AFullOutboxPausesUntilItHasDrained) {
  AtomicObserver observer;
  ReplyThread replies;
  const auto engine =
      StartedEngine(&observer, Model(GetParam()), Options(absl::Minutes(1), replies));
  Alarms alarms;
  const auto stream =
      InProcessStream::Start(replies, alarms, *engine, Generate(Prompt(3), 400), {});
  while (observer.stalls == 0) std::this_thread::yield();
  // The start and 63 tokens fill it; what was in flight still comes.
  EXPECT_LE(observer.generated, 63 + GetParam());
  std::vector<TokenId> ids;
  while (const Event* event = stream->Await()) {
    ids.insert(ids.end(), event->ids.begin(), event->ids.end());
    stream->Take(true);
  }
  EXPECT_EQ(stream->AwaitEnd(), absl::OkStatus());
  stream->Done();
  EXPECT_EQ(ids, ExpectedTokens(Prompt(3), 400));
}

// Grace is given again to a client that takes something, and only to such a client.
TEST_P(StreamCallTest, AnEndedStreamWaitsForAClientThatReads) {
  AtomicObserver observer;
  ReplyThread replies;
  const auto engine =
      StartedEngine(&observer, Model(GetParam()), Options(absl::Minutes(1), replies));
  Alarms alarms;
  const auto stream = InProcessStream::Start(replies, alarms, *engine, Generate(Prompt(3), 9),
                                             {.echo = std::nullopt, .end_grace = absl::Hours(1)});
  EXPECT_TRUE(engine->WaitUntilIdle(absl::Now() + absl::Minutes(1)));
  std::promise<void> answered;  // its end is in the outbox, and the grace has begun
  replies.Post([&answered] { answered.set_value(); });
  replies.Wake();
  answered.get_future().wait();
  // The start and nine tokens.
  for (int i = 0; i < 10; ++i) {
    ASSERT_NE(stream->Await(), nullptr);
    stream->Take(true);
  }
  ASSERT_EQ(stream->Await()->kind, 'e');
  stream->OnGraceOver();
  EXPECT_FALSE(stream->dropped()) << "it took some";
  stream->OnGraceOver();
  EXPECT_TRUE(stream->dropped()) << "it took none";
  stream->GoAway();
  EXPECT_EQ(stream->AwaitEnd().code(), absl::StatusCode::kCancelled);
  stream->Done();
}

TEST_P(StreamCallTest, ARefusedRequestEndsAtOnce) {
  AtomicObserver observer;
  ReplyThread replies;
  const auto engine =
      StartedEngine(&observer, Model(GetParam()), Options(absl::Minutes(1), replies));
  Alarms alarms;
  engine->StopAdmission();
  const auto stream = InProcessStream::Start(replies, alarms, *engine, Generate({1}, 1), {});
  EXPECT_EQ(stream->AwaitEnd().code(), absl::StatusCode::kUnavailable);
  stream->Cancel();
  stream->Done();
}

INSTANTIATE_TEST_SUITE_P(InFlightSteps, StreamCallTest, testing::Values(1, 2));

}  // namespace
}  // namespace ddl
