#include "server/models/compute_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "tests/server/engine/engine_fixture.h"
#include "tests/server/engine/fake_model_runner.h"

namespace ddl {
namespace {

TEST(ComputeThreadTest, RunsOneAtATimeOnOneThread) {
  ComputeThread compute;
  std::set<std::thread::id> threads;  // touched on the compute thread alone
  int running = 0;
  int most = 0;
  std::atomic<int> returned = 0;
  std::vector<std::thread> askers;
  for (int i = 0; i < 8; ++i) {
    askers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        bool ran = false;
        compute.Run([&] {
          most = std::max(most, ++running);
          threads.insert(std::this_thread::get_id());
          ran = true;
          --running;
        });
        EXPECT_TRUE(ran);
        ++returned;
      }
    });
  }
  for (std::thread& asker : askers) asker.join();
  EXPECT_EQ(most, 1);
  EXPECT_EQ(threads.size(), 1u);
  EXPECT_EQ(threads.count(std::this_thread::get_id()), 0u);
  EXPECT_EQ(returned, 8 * 200);
}

TEST(ComputeThreadTest, RunsInTheOrderAsked) {
  ComputeThread compute;
  std::vector<int> order;
  std::vector<std::thread> askers;
  std::atomic<int> asking = 0;
  compute.Run([&] {
    // Everybody asks while this one runs, each after the one before has.
    for (int i = 0; i < 5; ++i) {
      askers.emplace_back([&, i] {
        asking = i + 1;
        compute.Run([&order, i] { order.push_back(i); });
      });
      while (asking != i + 1 || compute.num_waiting() != i + 1) std::this_thread::yield();
    }
  });
  for (std::thread& asker : askers) asker.join();
  EXPECT_EQ(order, std::vector<int>({0, 1, 2, 3, 4}));
}

// Engines over runners on one thread give what each gives alone.
TEST(ComputeThreadTest, ChangesNothingForTheEngines) {
  ComputeThread compute;
  CountingObserver observers[2];
  std::vector<std::unique_ptr<Engine>> engines;
  std::set<std::thread::id> threads;
  for (CountingObserver& observer : observers) {
    auto runner =
        std::make_unique<FakeModelRunner>(FakeModelRunner::Options{.max_in_flight_steps = 2});
    runner->on_forward = [&](absl::Span<const SequenceChunk>) {
      threads.insert(std::this_thread::get_id());
      return absl::OkStatus();
    };
    EngineOptions options;
    options.max_step_tokens = 64;
    auto engine = Engine::Create(options, RunOn(&compute, std::move(runner)), nullptr, &observer);
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ((*engine)->model().max_in_flight_steps, 1);
    engines.push_back(*std::move(engine));
    engines.back()->Start();
  }
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 20; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    ASSERT_TRUE(engines[i % 2]->Submit(Generate(Prompt(1 + i, i), 10), sinks.back()).ok());
  }
  for (auto& engine : engines) ASSERT_TRUE(engine->WaitUntilIdle(absl::InfiniteFuture()));
  for (auto& engine : engines) engine->Stop();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(sinks[i]->ids, ExpectedTokens(Prompt(1 + i, i), 10)) << i;
  EXPECT_EQ(threads.size(), 1u);
}

}  // namespace
}  // namespace ddl
