// Streams through the engine as a server runs it, scheduling and sampling included, but without
// gRPC and without clients: what bench/service_cost.py compares a server with.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/program.h"
#include "bench/token_lengths.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_runner.h"
#include "server/engine/engine.h"
#include "server/engine/scheduler.h"

ABSL_FLAG(std::string, model, "", "Required. Folder of the checkpoint.");
ABSL_FLAG(int32_t, streams, 64, "Requests in flight at a time; the end of one starts the next.");
ABSL_FLAG(int32_t, requests, 128, "Requests that are measured. As many streams go before them.");
ABSL_FLAG(std::string, prompt_tokens, "64", "Length of prompts: N, A..B (uniform) or @FILE.");
ABSL_FLAG(std::string, output_tokens, "96", "Length of completions, likewise.");
ABSL_FLAG(int32_t, threads, 0, "Threads that compute. 0: as many as suit the model's size.");
ABSL_FLAG(uint64_t, seed, 1, "Seed of the random tokens and lengths.");

namespace ddl::bench {
namespace {

constexpr int kExitFailed = 1;

const std::vector<FlagGroup>& FlagGroups() {
  static const auto& groups = *new std::vector<FlagGroup>{
      {"What", {"model", "streams", "requests", "prompt_tokens", "output_tokens", "seed"}},
      {"How", {"threads"}},
  };
  return groups;
}

constexpr char kUsage[] =
    R"(Times streams through the engine in this process, without gRPC. Prints one JSON object.

  engine_streams --model=models/ddl-demo --streams=64

Exit codes: 0 when measured, 1 when the checkpoint cannot be loaded or a request fails, 2 for a bad flag.
)";

const Program& ThisProgram() {
  static const auto& program = *new Program{"engine_streams", FlagGroups(), kUsage};
  return program;
}

int Fail(const absl::Status& status, int exit_code) {
  return Fail(ThisProgram(), status, exit_code);
}

// Adds up what steps took.
class StepTimes final : public EngineObserver {
 public:
  void OnStep(const StepStats& step) override {
    ++steps;
    whole += absl::ToDoubleSeconds(step.duration);
    model += absl::ToDoubleSeconds(step.model_duration);
  }
  void OnLoad(const EngineLoad& /*load*/) override {}
  void OnPromptTokens(Task /*task*/, PromptSource /*source*/, int64_t /*tokens*/) override {}
  void OnPrefixCacheQuery(int64_t /*query*/, int64_t /*hit*/) override {}
  void OnStreamStall() override {}
  void OnGateSample(const GateSample& /*sample*/) override {}
  void OnGeneratedTokens(int64_t /*tokens*/) override {}
  void OnWastedTokens(WasteReason /*reason*/, int64_t /*tokens*/) override {}
  void OnTimeToFirstToken(absl::Duration /*duration*/) override {}
  void OnInterTokenLatency(absl::Duration /*duration*/) override {}
  void OnPreemption() override {}
  void OnNonfiniteLogits() override {}
  void OnRejected(RejectReason /*reason*/) override {}
  void OnFinished(const FinishedRequest& /*request*/) override {}

  // Read once the engine is idle.
  int64_t steps = 0;
  double whole = 0.0, model = 0.0;  // seconds
};

// Requests with random prompts, so many at a time. The sinks count and submit, on the step thread.
class Load {
 public:
  Load(Engine* engine, TokenId vocab_size, TokenLengths prompt_tokens, TokenLengths output_tokens)
      : engine_(*engine),
        vocab_size_(vocab_size),
        prompt_tokens_(std::move(prompt_tokens)),
        output_tokens_(std::move(output_tokens)) {}

  // How many tokens were sampled.
  absl::StatusOr<int64_t> Run(int32_t streams, int32_t requests) {
    tokens_ = 0;
    done_ = std::promise<absl::Status>();
    std::future<absl::Status> done = done_.get_future();
    const int32_t at_once = std::min(streams, requests);
    {
      const MutexLock lock(mu_);
      running_ = at_once;
      left_ = requests - at_once;
    }
    for (int32_t i = 0; i < at_once; ++i) Submit();
    const absl::Status status = done.get();
    if (!status.ok()) return status;
    return tokens_;
  }

 private:
  class Sink final : public RequestSink {
   public:
    explicit Sink(Load* load) : load_(*load) {}
    void OnStart(RequestStart /*start*/) override {}
    SinkState OnDelta(CompletionDelta delta) override {
      load_.tokens_ += static_cast<int64_t>(delta.tokens.size());
      return SinkState::kReady;
    }
    void OnEmbedding(InputEmbedding /*embedding*/) override {}
    void OnScore(InputScore /*score*/) override {}
    void OnEnd(RequestEnd end) override { load_.OnEnd(end.status); }

   private:
    Load& load_;
  };

  void Submit() {
    GenerateParams params;
    std::uniform_int_distribution<TokenId> token(0, vocab_size_ - 1);
    {
      const MutexLock lock(mu_);
      for (int32_t i = prompt_tokens_.Sample(random_); i > 0; --i) {
        params.prompt.push_back(token(random_));
      }
      params.stopping.max_tokens = output_tokens_.Sample(random_);
    }
    params.sampling.temperature = 0.0f;
    params.stopping.ignore_eos = true;
    Request request;
    request.params = std::move(params);
    const auto handle = engine_.Submit(std::move(request), std::make_shared<Sink>(this));
    if (!handle.ok()) OnEnd(handle.status());
  }

  void OnEnd(const absl::Status& status) {
    bool submits = false, is_last = false;
    {
      const MutexLock lock(mu_);
      if (status_.ok()) status_ = status;
      submits = status_.ok() && left_ > 0;
      if (submits) {
        --left_;
      } else {
        is_last = --running_ == 0;
      }
    }
    if (submits) Submit();
    if (is_last) done_.set_value(status_);
  }

  Engine& engine_;
  const TokenId vocab_size_;
  const TokenLengths prompt_tokens_, output_tokens_;
  Mutex mu_;
  std::mt19937_64 random_{absl::GetFlag(FLAGS_seed)};
  int32_t left_ = 0;     // requests to be submitted
  int32_t running_ = 0;  // requests in flight
  absl::Status status_;  // of the first that failed
  std::atomic<int64_t> tokens_ = 0;
  std::promise<absl::Status> done_;
};

absl::StatusOr<nlohmann::json> Measure(const TokenLengths& prompt_tokens,
                                       const TokenLengths& output_tokens) {
  absl::StatusOr<Checkpoint> opened = Checkpoint::Open(absl::GetFlag(FLAGS_model));
  if (!opened.ok()) return opened.status();
  const auto checkpoint = std::make_shared<const Checkpoint>(*std::move(opened));
  const int32_t streams = absl::GetFlag(FLAGS_streams);
  const int32_t length = prompt_tokens.longest() + output_tokens.longest();

  EngineOptions engine_options;
  engine_options.max_running_sequences = streams;
  engine_options.max_context_length = length;
  engine_options.max_step_tokens = std::max(engine_options.max_step_tokens, streams);
  RunnerOptions options;
  options.dtype = checkpoint->stored_type() == StoredType::kBFloat16 ? RunnerDType::kBFloat16
                                                                     : RunnerDType::kFloat32;
  options.kv_block_size = 16;
  options.kv_num_blocks = 2 * streams * (length / options.kv_block_size + 1);
  options.max_sequences = SlotsFor(streams);
  options.max_step_tokens = engine_options.max_step_tokens;
  options.max_context_length = length;
  options.num_threads = absl::GetFlag(FLAGS_threads);
  absl::StatusOr<std::unique_ptr<ModelRunner>> runner = ModelRunner::Create(checkpoint, options);
  if (!runner.ok()) return runner.status();
  const auto vocab_size = static_cast<TokenId>((*runner)->description().vocab_size);

  StepTimes times;
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Create(engine_options, *std::move(runner), nullptr, &times);
  if (!engine.ok()) return engine.status();
  if (absl::Status status = (*engine)->WarmUp(); !status.ok()) return status;
  (*engine)->Start();
  Load load(engine->get(), vocab_size, prompt_tokens, output_tokens);
  if (const auto warm = load.Run(streams, streams); !warm.ok()) return warm.status();
  (*engine)->WaitUntilIdle(absl::InfiniteFuture());
  const StepTimes before = times;
  const absl::Time begin = absl::Now();
  const absl::StatusOr<int64_t> tokens = load.Run(streams, absl::GetFlag(FLAGS_requests));
  if (!tokens.ok()) return tokens.status();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
  (*engine)->WaitUntilIdle(absl::InfiniteFuture());
  (*engine)->Stop();
  return nlohmann::json{{"output_tokens", *tokens},
                        {"seconds", seconds},
                        {"output_tokens_per_second", static_cast<double>(*tokens) / seconds},
                        {"steps", times.steps - before.steps},
                        {"step_seconds", times.whole - before.whole},
                        {"model_seconds", times.model - before.model}};
}

int Main(const std::vector<std::string>& arguments) {
  if (const std::optional<int> end = ReadCommandLine(ThisProgram(), arguments)) return *end;
  if (absl::GetFlag(FLAGS_model).empty()) {
    return Fail(absl::InvalidArgumentError("--model is required: the folder of a checkpoint"),
                kExitBadSetting);
  }
  struct Number {
    const char* flag;
    int32_t value, least;
  };
  for (const Number& number : {Number{"streams", absl::GetFlag(FLAGS_streams), 1},
                               Number{"requests", absl::GetFlag(FLAGS_requests), 1},
                               Number{"threads", absl::GetFlag(FLAGS_threads), 0}}) {
    if (number.value < number.least || number.value > 1 << 20) {
      return Fail(
          absl::InvalidArgumentError(absl::StrCat("--", number.flag, "=", number.value,
                                                  ": must be ", number.least, "...", 1 << 20)),
          kExitBadSetting);
    }
  }
  const auto prompt_tokens = TokenLengths::Parse(absl::GetFlag(FLAGS_prompt_tokens));
  const auto output_tokens = TokenLengths::Parse(absl::GetFlag(FLAGS_output_tokens));
  for (const auto& [flag, lengths] :
       {std::pair{"prompt_tokens", &prompt_tokens}, std::pair{"output_tokens", &output_tokens}}) {
    if (lengths->ok()) continue;
    return Fail(
        absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", lengths->status().message())),
        kExitBadSetting);
  }
  const absl::StatusOr<nlohmann::json> result = Measure(*prompt_tokens, *output_tokens);
  if (!result.ok()) return Fail(result.status(), kExitFailed);
  std::printf("%s\n", result->dump().c_str());
  return kExitDone;
}

}  // namespace
}  // namespace ddl::bench

int main(int argc, char** argv) {
  return ddl::bench::Main(std::vector<std::string>(argv + 1, argv + argc));
}
