// The engine with its own thread, and many that submit to it, cancel and ask. Built to be run
// under ThreadSanitizer and AddressSanitizer as well.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "base/mutex.h"
#include "server/engine/engine.h"
#include "server/engine/scheduler.h"
#include "tests/server/engine/engine_fixture.h"
#include "tests/server/engine/started_engine.h"

namespace ddl {
namespace {

// Keeps what the step thread sends until the test asks for it.
class AwaitedSink final : public RequestSink {
 public:
  void OnStart(RequestStart) override {}
  void OnScore(InputScore) override {}
  SinkState OnDelta(CompletionDelta delta) override {
    MutexLock lock(mu_);
    for (const SampledToken& token : delta.tokens) ids_.push_back(token.id);
    changed_.NotifyAll();
    return SinkState::kReady;
  }
  void OnEmbedding(InputEmbedding) override {
    MutexLock lock(mu_);
    ++num_embeddings_;
  }
  void OnEnd(RequestEnd end) override {
    MutexLock lock(mu_);
    ++num_ends_;
    end_ = std::move(end);
    changed_.NotifyAll();
  }

  RequestEnd WaitForEnd() {
    MutexLock lock(mu_);
    while (num_ends_ == 0) changed_.Wait(mu_);
    return end_;
  }
  void WaitForTokens(size_t count) {
    MutexLock lock(mu_);
    while (ids_.size() < count && num_ends_ == 0) changed_.Wait(mu_);
  }
  std::vector<TokenId> ids() const {
    MutexLock lock(mu_);
    return ids_;
  }
  int num_embeddings() const {
    MutexLock lock(mu_);
    return num_embeddings_;
  }
  int num_ends() const {
    MutexLock lock(mu_);
    return num_ends_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  std::vector<TokenId> ids_ ABSL_GUARDED_BY(mu_);
  int num_embeddings_ ABSL_GUARDED_BY(mu_) = 0;
  int num_ends_ ABSL_GUARDED_BY(mu_) = 0;
  RequestEnd end_ ABSL_GUARDED_BY(mu_);
};

// Of steps that may be in flight at a time.
class EngineThreadsTest : public testing::TestWithParam<int32_t> {};

TEST_P(EngineThreadsTest, ServesManyThreadsAtOnce) {
  constexpr int kThreads = 8;
  constexpr int kRequests = 150;  // of each thread
  AtomicObserver observer;
  const auto engine =
      StartedEngine(&observer,
                    {.kv_block_size = 4,
                     .kv_num_blocks = 24,
                     .max_sequences = 4,
                     .max_step_tokens = 32,
                     .max_in_flight_steps = GetParam()},
                    {.max_waiting_requests = 2, .max_waiting_tokens = 100, .max_step_tokens = 32});

  std::atomic<int64_t> admitted = 0, refused = 0, completion_tokens = 0, ok = 0, cancelled = 0,
                       expired = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < kRequests; ++i) {
        const auto length = static_cast<int32_t>(1 + random() % 20);
        const auto count = static_cast<int32_t>(1 + random() % 30);
        const bool embeds = random() % 4 == 0;
        Request request =
            embeds ? Embed({Prompt(length, i), Prompt(3, t)}) : Generate(Prompt(length, i), count);
        if (random() % 8 == 0) {
          request.deadline = absl::Now() + absl::Microseconds(random() % 2000);
        }
        const auto sink = std::make_shared<AwaitedSink>();
        const auto handle = engine->Submit(std::move(request), sink);
        if (!handle.ok()) {
          ++refused;
          EXPECT_EQ(sink->num_ends(), 0);
          std::this_thread::yield();
          continue;
        }
        ++admitted;
        if (random() % 4 == 0) {
          if (!embeds) sink->WaitForTokens(random() % 5);
          engine->Cancel(*handle);
        }
        (void)engine->load();
        const RequestEnd end = sink->WaitForEnd();
        if (end.status.ok()) {
          ++ok;
          completion_tokens += end.usage.completion_tokens;
          if (embeds) {
            EXPECT_EQ(sink->num_embeddings(), 2);
          } else {
            EXPECT_EQ(sink->ids(), ExpectedTokens(Prompt(length, i), count));
          }
        } else if (end.status.code() == absl::StatusCode::kCancelled) {
          ++cancelled;
        } else {
          ++expired;
          EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
        }
        EXPECT_EQ(sink->num_ends(), 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  EXPECT_TRUE(engine->WaitUntilIdle(absl::Now() + absl::Minutes(1)));
  EXPECT_EQ(admitted + refused, kThreads * kRequests);
  EXPECT_EQ(observer.finished, admitted);
  EXPECT_EQ(observer.rejected, refused);
  EXPECT_EQ(observer.generated, completion_tokens + observer.wasted);
  EXPECT_EQ(observer.running, 0);
  EXPECT_EQ(observer.waiting, 0);
  EXPECT_EQ(observer.blocks_used, 0);
  EXPECT_GT(ok, 0);
  EXPECT_GT(cancelled, 0);
  std::cout << ok << " OK, " << cancelled << " cancelled, " << expired << " expired, " << refused
            << " refused, " << observer.preemptions << " preemptions, " << observer.steps
            << " steps\n";
}

TEST_P(EngineThreadsTest, StopsWhileOthersSubmit) {
  AtomicObserver observer;
  const auto engine =
      StartedEngine(&observer, {.max_in_flight_steps = GetParam()}, {.max_step_tokens = 64});
  std::atomic<int> ended = 0, admitted = 0;
  std::vector<std::thread> threads;
  std::promise<void> first_admitted;
  std::atomic_flag announced;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (;;) {
        const auto sink = std::make_shared<AwaitedSink>();
        const auto handle = engine->Submit(Generate(Prompt(3, t), 100), sink);
        if (absl::IsUnavailable(handle.status())) return;
        if (!handle.ok()) continue;
        ++admitted;
        if (!announced.test_and_set()) first_admitted.set_value();
        const absl::Status status = sink->WaitForEnd().status;
        EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
        ++ended;
      }
    });
  }
  first_admitted.get_future().wait();
  std::thread other([&engine] { engine->Stop(); });
  engine->Stop();
  other.join();
  EXPECT_TRUE(engine->WaitUntilIdle(absl::Now()));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ended, admitted);
  EXPECT_EQ(observer.finished, admitted);
}

TEST_P(EngineThreadsTest, DrainsAndWakesWhoeverWaits) {
  AtomicObserver observer;
  const auto engine =
      StartedEngine(&observer, {.max_in_flight_steps = GetParam()}, {.max_step_tokens = 64});
  std::vector<std::shared_ptr<AwaitedSink>> sinks;
  for (int i = 0; i < 20; ++i) {
    sinks.push_back(std::make_shared<AwaitedSink>());
    ASSERT_TRUE(engine->Submit(Generate(Prompt(5, i), 20), sinks.back()).ok());
  }
  engine->StopAdmission();
  std::thread waiting([&engine] { EXPECT_TRUE(engine->WaitUntilIdle(absl::InfiniteFuture())); });
  EXPECT_TRUE(engine->WaitUntilIdle(absl::Now() + absl::Minutes(1)));
  waiting.join();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(sinks[i]->ids(), ExpectedTokens(Prompt(5, i), 20));
}

TEST_P(EngineThreadsTest, WaitingEndsAtItsDeadline) {
  AtomicObserver observer;
  auto runner = std::make_unique<FakeModelRunner>(
      FakeModelRunner::Options{.max_in_flight_steps = GetParam()});
  std::promise<void> go_on;
  std::shared_future<void> gate = go_on.get_future().share();
  runner->on_forward = [gate](auto) {
    gate.wait();
    return absl::OkStatus();
  };
  auto engine = *Engine::Create({.max_step_tokens = 64}, std::move(runner), nullptr, &observer);
  engine->Start();
  const auto sink = std::make_shared<AwaitedSink>();
  ASSERT_TRUE(engine->Submit(Generate(Prompt(2), 1), sink).ok());
  EXPECT_FALSE(engine->WaitUntilIdle(absl::Now() + absl::Milliseconds(20)));
  go_on.set_value();
  EXPECT_TRUE(engine->WaitUntilIdle(absl::InfiniteFuture()));
}

// Nothing else wakes the engine: the deadline of a request that runs alone must do.
TEST_P(EngineThreadsTest, ALonelyRequestExpires) {
  AtomicObserver observer;
  auto runner = std::make_unique<FakeModelRunner>(
      FakeModelRunner::Options{.max_in_flight_steps = GetParam()});
  const absl::Time deadline = absl::Now() + absl::Milliseconds(50);
  int step = 0;
  runner->on_forward = [&step, deadline](auto) {
    while (++step == 3 && absl::Now() < deadline) {
      std::this_thread::yield();
      --step;
    }
    return absl::OkStatus();
  };
  auto engine = *Engine::Create({.max_step_tokens = 64}, std::move(runner), nullptr, &observer);
  engine->Start();
  Request request = Generate(Prompt(2), 100);
  request.deadline = deadline;
  const auto sink = std::make_shared<AwaitedSink>();
  ASSERT_TRUE(engine->Submit(std::move(request), sink).ok());
  EXPECT_EQ(sink->WaitForEnd().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LE(sink->ids().size(), 2u);
}

// A sink with room for a few deltas, as the service's, and a client that takes them out.
class BoundedSink final : public RequestSink {
 public:
  explicit BoundedSink(size_t room) : room_(room) {}

  void OnStart(RequestStart) override {
    MutexLock lock(mu_);
    ++num_starts_;
  }
  SinkState OnDelta(CompletionDelta delta) override {
    MutexLock lock(mu_);
    unread_.push_back(std::move(delta));
    full_ = full_ || unread_.size() >= room_;
    changed_.NotifyAll();
    return full_ ? SinkState::kFull : SinkState::kReady;
  }
  void OnEmbedding(InputEmbedding) override {}
  void OnScore(InputScore score) override {
    MutexLock lock(mu_);
    scores_[score.index] = std::move(score.tokens);
  }
  void OnEnd(RequestEnd end) override {
    MutexLock lock(mu_);
    end_ = std::move(end);
    changed_.NotifyAll();
  }

  // Waits for deltas or the end, and takes what is there. Says whether it had been full.
  struct Read {
    std::vector<CompletionDelta> deltas;
    bool was_full = false;
    bool ended = false;
  };
  Read WaitAndRead() {
    MutexLock lock(mu_);
    while (unread_.empty() && !end_.has_value()) changed_.Wait(mu_);
    return {std::exchange(unread_, {}), std::exchange(full_, false), end_.has_value()};
  }
  RequestEnd end() const {
    MutexLock lock(mu_);
    return *end_;
  }
  int num_starts() const {
    MutexLock lock(mu_);
    return num_starts_;
  }
  std::map<int32_t, std::vector<SampledToken>> scores() const {
    MutexLock lock(mu_);
    return scores_;
  }

 private:
  const size_t room_;
  mutable Mutex mu_;
  CondVar changed_;
  std::vector<CompletionDelta> unread_ ABSL_GUARDED_BY(mu_);
  std::map<int32_t, std::vector<SampledToken>> scores_ ABSL_GUARDED_BY(mu_);
  bool full_ ABSL_GUARDED_BY(mu_) = false;
  int num_starts_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<RequestEnd> end_ ABSL_GUARDED_BY(mu_);
};

TEST_P(EngineThreadsTest, ServesSlowReadersSeveralCompletionsAndScores) {
  constexpr int kThreads = 6;
  constexpr int kRequests = 60;  // of each thread
  AtomicObserver observer;
  const auto engine = StartedEngine(
      &observer,
      {.kv_block_size = 4,
       .kv_num_blocks = 24,
       .max_sequences = SlotsFor(4),
       .max_step_tokens = 32,
       .max_in_flight_steps = GetParam()},
      {.max_running_sequences = 4, .max_step_tokens = 32, .slow_reader_timeout = absl::Minutes(1)});
  std::atomic<int64_t> ok = 0, cancelled = 0, completion_tokens = 0, resumed = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < kRequests; ++i) {
        const auto sink = std::make_shared<BoundedSink>(1 + random() % 4);
        const auto length = static_cast<int32_t>(1 + random() % 20);
        const auto prompt = Prompt(length, static_cast<int32_t>(random() % 3));
        const bool scores = random() % 4 == 0;
        const auto n = static_cast<int32_t>(1 + random() % 3);
        Request request = scores ? Score({prompt, Prompt(5, i)}) : Generate(prompt, 20);
        if (!scores) ParamsOf(request).n = n;
        const auto handle = engine->Submit(std::move(request), sink);
        ASSERT_TRUE(handle.ok()) << handle.status();
        const bool cancels = random() % 6 == 0;
        std::map<int32_t, std::vector<TokenId>> ids;
        for (bool ended = false; !ended;) {
          const BoundedSink::Read read = sink->WaitAndRead();
          for (const CompletionDelta& delta : read.deltas) {
            for (const SampledToken& token : delta.tokens) ids[delta.index].push_back(token.id);
          }
          ended = read.ended;
          if (cancels && ids[0].size() > 5) {
            engine->Cancel(*handle);
          } else if (read.was_full) {
            ++resumed;
            engine->Resume(*handle);
          }
        }
        for (const CompletionDelta& delta : sink->WaitAndRead().deltas) {
          for (const SampledToken& token : delta.tokens) ids[delta.index].push_back(token.id);
        }
        const RequestEnd end = sink->end();
        if (!end.status.ok()) {
          EXPECT_EQ(end.status.code(), absl::StatusCode::kCancelled) << end.status;
          ++cancelled;
          continue;
        }
        ++ok;
        EXPECT_EQ(sink->num_starts(), 1);
        completion_tokens += end.usage.completion_tokens;
        if (scores) {
          EXPECT_EQ(sink->scores()[0].size(), static_cast<size_t>(length - 1));
          EXPECT_EQ(sink->scores()[1].size(), 4u);
        } else {
          for (int32_t k = 0; k < n; ++k) EXPECT_EQ(ids[k], ExpectedTokens(prompt, 20));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(engine->WaitUntilIdle(absl::Now() + absl::Minutes(1)));
  EXPECT_EQ(ok + cancelled, kThreads * kRequests);
  EXPECT_EQ(observer.finished, kThreads * kRequests);
  EXPECT_EQ(observer.generated, completion_tokens + observer.wasted);
  EXPECT_EQ(observer.blocks_used, 0);
  EXPECT_GT(cancelled, 0);
  EXPECT_GT(resumed, 0);
  EXPECT_GT(observer.stalls, 0);
  std::cout << ok << " OK, " << cancelled << " cancelled, " << observer.stalls << " stalls, "
            << resumed << " resumed, " << observer.preemptions << " preemptions\n";
}

// With nothing to compute the step thread sleeps, and wakes for the timeout of a slow reader, for
// a deadline, for a cancel and for whoever comes.
TEST_P(EngineThreadsTest, SleepsWhileEveryoneIsPaused) {
  enum class Way { kTimeout, kDeadline, kCancel, kSubmit };
  for (const Way way : {Way::kTimeout, Way::kDeadline, Way::kCancel, Way::kSubmit}) {
    SCOPED_TRACE(static_cast<int>(way));
    AtomicObserver observer;
    std::atomic<int64_t> clock_reads = 0;
    EngineOptions options = {.max_step_tokens = 64, .slow_reader_timeout = absl::Minutes(10)};
    if (way == Way::kTimeout) options.slow_reader_timeout = absl::Milliseconds(100);
    auto engine = *Engine::Create(options,
                                  std::make_unique<FakeModelRunner>(
                                      FakeModelRunner::Options{.max_in_flight_steps = GetParam()}),
                                  nullptr, &observer, [&clock_reads] {
                                    ++clock_reads;
                                    return absl::Now();
                                  });
    engine->Start();
    Request request = Generate(Prompt(3), 20);
    if (way == Way::kDeadline) request.deadline = absl::Now() + absl::Milliseconds(100);
    const auto sink = std::make_shared<BoundedSink>(2);
    const auto handle = engine->Submit(std::move(request), sink);
    ASSERT_TRUE(handle.ok());
    int64_t read = 0;  // the second look may find two more
    if (way == Way::kCancel || way == Way::kSubmit) {
      while (read < 2) read += std::ssize(sink->WaitAndRead().deltas);
    }
    if (way == Way::kSubmit) {
      const auto other = std::make_shared<AwaitedSink>();
      ASSERT_TRUE(engine->Submit(Generate(Prompt(4), 5), other).ok());
      EXPECT_EQ(other->WaitForEnd().status, absl::OkStatus());
    }
    if (way == Way::kCancel || way == Way::kSubmit) engine->Cancel(*handle);
    EXPECT_TRUE(engine->WaitUntilIdle(absl::Now() + absl::Minutes(1)));
    const absl::StatusCode code = sink->end().status.code();
    EXPECT_EQ(code, way == Way::kTimeout    ? absl::StatusCode::kResourceExhausted
                    : way == Way::kDeadline ? absl::StatusCode::kDeadlineExceeded
                                            : absl::StatusCode::kCancelled);
    EXPECT_LE(observer.steps, 2 + std::max<int64_t>(read, 2) + 5)
        << "what was read makes room for as much again";
    EXPECT_LT(clock_reads, 300) << "it did not go round and round";
  }
}

INSTANTIATE_TEST_SUITE_P(InFlightSteps, EngineThreadsTest, testing::Values(1, 2));

}  // namespace
}  // namespace ddl
