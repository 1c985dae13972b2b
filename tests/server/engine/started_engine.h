#ifndef DDL_TESTS_SERVER_ENGINE_STARTED_ENGINE_H_
#define DDL_TESTS_SERVER_ENGINE_STARTED_ENGINE_H_

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "tests/server/engine/fake_model_runner.h"

// An engine with its own thread over the fake model.

namespace ddl {

// Thread-safe, as an observer has to be.
struct AtomicObserver final : EngineObserver {
  void OnStep(const StepStats&) override { ++steps; }
  void OnLoad(const EngineLoad& load) override {
    running = load.running();
    waiting = load.waiting();
    blocks_used = load.kv_blocks_used;
  }
  void OnPromptTokens(Task, PromptSource, int64_t) override {}
  void OnPrefixCacheQuery(int64_t, int64_t) override {}
  void OnStreamStall() override { ++stalls; }
  void OnGateSample(const GateSample&) override {}
  void OnGeneratedTokens(int64_t tokens) override { generated += tokens; }
  void OnWastedTokens(WasteReason reason, int64_t tokens) override {
    if (reason != WasteReason::kPreemptRecompute) wasted += tokens;
  }
  void OnTimeToFirstToken(absl::Duration) override {}
  void OnInterTokenLatency(absl::Duration) override {}
  void OnPreemption() override { ++preemptions; }
  void OnNonfiniteLogits() override {}
  void OnRejected(RejectReason) override { ++rejected; }
  void OnFinished(const FinishedRequest&) override { ++finished; }

  std::atomic<int64_t> steps = 0, running = 0, waiting = 0, blocks_used = 0, generated = 0,
                       wasted = 0, stalls = 0, preemptions = 0, rejected = 0, finished = 0;
};

inline std::unique_ptr<Engine> StartedEngine(EngineObserver* observer,
                                             const FakeModelRunner::Options& model,
                                             const EngineOptions& options) {
  auto engine =
      Engine::Create(options, std::make_unique<FakeModelRunner>(model), nullptr, observer);
  EXPECT_EQ(engine.status(), absl::OkStatus());
  EXPECT_EQ((*engine)->WarmUp(), absl::OkStatus());
  (*engine)->Start();
  return *std::move(engine);
}

}  // namespace ddl

#endif  // DDL_TESTS_SERVER_ENGINE_STARTED_ENGINE_H_
