// Times the model side of the engine in-process: decode steps and prefills of several checkpoints
// in interleaved rounds, and how they compare. docs/performance.md says how to read it.

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/process_limits.h"
#include "base/thread_pool.h"
#include "bench/contestant.h"
#include "bench/program.h"
#include "bench/statistics.h"
#include "bench/step_bound.h"
#include "model/checkpoint/checkpoint.h"
#include "model/model_runner.h"

ABSL_FLAG(std::string, models, "",
          "Required. Checkpoints to time, [NAME=]DIR[,[NAME=]DIR...]. The first is what the others "
          "are compared with. NAME defaults to the folder's name.");
ABSL_FLAG(std::string, batches, "1,8,16,32",
          "Sequences in a decode step; each is timed. Empty: no decode.");
ABSL_FLAG(int32_t, context, 128, "Tokens that each sequence has when decoding begins.");
ABSL_FLAG(int32_t, steps, 16, "Decode steps of each model in each round.");
ABSL_FLAG(int32_t, prefill, 512, "Tokens of the prompt whose prefill is timed. 0: none.");
ABSL_FLAG(int32_t, rounds, 7, "Rounds that count; one more goes before them.");
ABSL_FLAG(std::string, dtype, "auto",
          "auto (bfloat16 for checkpoints stored in it, else float32), float32 or bfloat16.");
ABSL_FLAG(std::string, quantization, "none", "Weight quantization: none, or int8 (CPU, bfloat16).");
ABSL_FLAG(std::string, instruction_set, "auto",
          "Of the CPU's kernels: auto, portable, avx2, avx512, avx512_bf16, amx or amx_emulated.");
ABSL_FLAG(std::string, device, "cpu", "Where to compute: cpu or cuda.");
ABSL_FLAG(int32_t, threads, 0, "Threads that compute. 0: as many as the process may use.");
ABSL_FLAG(bool, bound, true,
          "Also time what bounds a step, its matrix products alone and the reading of K/V. On the "
          "CPU only.");
ABSL_FLAG(std::string, json, "", "File to write the results to, as JSON. Empty: none.");

namespace ddl::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kExitFailed = 1;

const std::vector<FlagGroup>& FlagGroups() {
  static const auto& groups = *new std::vector<FlagGroup>{
      {"What", {"models", "batches", "context", "steps", "prefill", "bound"}},
      {"How", {"rounds", "device", "dtype", "quantization", "instruction_set", "threads", "json"}},
  };
  return groups;
}

constexpr char kUsage[] =
    R"(Times decode steps and prefills of checkpoints, without gRPC, in interleaved rounds (A B A B ...).

  engine_benchmark --models=models/gpt,models/ccec --batches=1,8,32

Exit codes: 0 when measured, 1 when there is no GPU for --device=cuda, a checkpoint cannot be loaded or a step fails, 2 for a
bad flag.
)";

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

struct Settings {
  std::vector<std::pair<std::string, std::filesystem::path>> models;
  int32_t rounds = 0;
  ContestantOptions options;
};

absl::Status Invalid(absl::string_view flag, absl::string_view value, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", value, ": ", why));
}

absl::StatusOr<Settings> ReadSettings() {
  Settings settings;
  const std::string models = absl::GetFlag(FLAGS_models);
  for (const absl::string_view entry : absl::StrSplit(models, ',', absl::SkipEmpty())) {
    const std::string text(entry);
    const size_t equals = text.find('=');
    const bool named = equals != std::string::npos && text.find('/') > equals;
    const std::filesystem::path folder = named ? text.substr(equals + 1) : text;
    const std::filesystem::path plain = folder.has_filename() ? folder : folder.parent_path();
    settings.models.emplace_back(named ? text.substr(0, equals) : plain.filename().string(),
                                 folder);
  }
  if (settings.models.empty()) {
    return absl::InvalidArgumentError("--models is required: [NAME=]DIR[,[NAME=]DIR...]");
  }
  struct Number {
    const char* flag;
    int32_t value, least, most;
  };
  for (const Number& number : {Number{"context", absl::GetFlag(FLAGS_context), 1, 1 << 20},
                               Number{"steps", absl::GetFlag(FLAGS_steps), 1, 1 << 20},
                               Number{"prefill", absl::GetFlag(FLAGS_prefill), 0, 1 << 20},
                               Number{"rounds", absl::GetFlag(FLAGS_rounds), 1, 1000},
                               Number{"threads", absl::GetFlag(FLAGS_threads), 0, 1024}}) {
    if (number.value < number.least || number.value > number.most) {
      return Invalid(number.flag, absl::StrCat(number.value),
                     absl::StrCat("must be ", number.least, "...", number.most));
    }
  }
  const std::string batches = absl::GetFlag(FLAGS_batches);
  for (const absl::string_view text : absl::StrSplit(batches, ',', absl::SkipEmpty())) {
    int32_t batch;
    if (!absl::SimpleAtoi(text, &batch) || batch < 1 || batch > kMaxStepTokens) {
      return Invalid("batches", batches,
                     absl::StrCat("must be a list of numbers in 1...", kMaxStepTokens));
    }
    settings.options.scenarios.push_back({false, batch, absl::GetFlag(FLAGS_context)});
    settings.options.max_batch = std::max(settings.options.max_batch, batch);
  }
  if (const int32_t prefill = absl::GetFlag(FLAGS_prefill); prefill > 0) {
    settings.options.scenarios.push_back({true, 1, prefill});
  }
  if (settings.options.scenarios.empty()) {
    return absl::InvalidArgumentError("nothing to time: --batches is empty and --prefill is 0");
  }
  const std::string dtype = absl::GetFlag(FLAGS_dtype);
  if (dtype != "auto" && dtype != "float32" && dtype != "bfloat16") {
    return Invalid("dtype", dtype, "must be auto, float32, bfloat16");
  }
  if (dtype != "auto") {
    settings.options.dtype = dtype == "bfloat16" ? RunnerDType::kBFloat16 : RunnerDType::kFloat32;
  }
  const std::string quantization = absl::GetFlag(FLAGS_quantization);
  if (quantization != "none" && quantization != "int8") {
    return Invalid("quantization", quantization, "must be none, int8");
  }
  if (quantization == "int8") settings.options.quantization = Quantization::kInt8;
  if (const std::string name = absl::GetFlag(FLAGS_instruction_set); name != "auto") {
    std::vector<std::string> names = {"auto"};
    for (const kernels::InstructionSet set : kernels::AllInstructionSets()) {
      names.emplace_back(kernels::Name(set));
      if (name == names.back()) settings.options.instruction_set = set;
    }
    if (!settings.options.instruction_set.has_value()) {
      return Invalid("instruction_set", name, absl::StrCat("must be ", absl::StrJoin(names, ", ")));
    }
  }
  const std::string device = absl::GetFlag(FLAGS_device);
  if (device != "cpu" && device != "cuda") return Invalid("device", device, "must be cpu, cuda");
  if (device == "cuda") settings.options.device = RunnerDevice::kCuda;
  settings.options.steps = absl::GetFlag(FLAGS_steps);
  settings.rounds = absl::GetFlag(FLAGS_rounds);
  settings.options.threads = absl::GetFlag(FLAGS_threads);
  if (settings.options.threads == 0) {
    settings.options.threads = ReadProcessLimits().Processors();
  }
  return settings;
}

// The seconds of every round.
struct Times {
  std::vector<std::vector<double>> steps;     // [models]
  std::vector<std::vector<double>> products;  // [models], with --bound
};

// The matrix products of each geometry once: variants of one size share them.
class Bounds {
 public:
  explicit Bounds(int num_threads) : threads_(num_threads) {}

  double ReadBandwidth() { return bench::ReadBandwidth(threads_); }
  void Add(const Contestant& contestant) {
    auto& products = by_geometry_[Geometry(contestant)];
    if (!products) {
      products =
          std::make_unique<MatrixProducts>(contestant.checkpoint(), contestant.dtype(), &threads_);
    }
  }
  double SecondsOfProducts(const Contestant& contestant, const Scenario& scenario, int steps) {
    const MatrixProducts& products = *by_geometry_.at(Geometry(contestant));
    const int repeats = scenario.is_prefill ? 1 : steps;
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < repeats; ++i) {
      for (int64_t done = 0; done < scenario.Rows(); done += kMaxStepTokens) {
        const int64_t rows = std::min<int64_t>(kMaxStepTokens, scenario.Rows() - done);
        products.Run(rows, scenario.is_prefill ? 1 : rows);
      }
    }
    return Seconds(Clock::now() - start) / repeats;
  }

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, RunnerDType>;
  static Key Geometry(const Contestant& contestant) {
    const ModelConfig& config = contestant.checkpoint().config();
    return {config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.head_dim,
            MlpWidth(config, contestant.checkpoint().variant()),
            config.vocab_size,
            contestant.dtype()};
  }

  ThreadPool threads_;
  std::map<Key, std::unique_ptr<MatrixProducts>> by_geometry_;
};

// Bytes of keys and values that a decode step reads, in the middle of a round.
double KvBytes(const Contestant& contestant, const Scenario& scenario, int32_t steps) {
  if (scenario.is_prefill) return 0.0;  // small beside the products, and partly in the cache
  const ModelConfig& config = contestant.checkpoint().config();
  const int64_t element_bytes = contestant.dtype() == RunnerDType::kBFloat16 ? 2 : 4;
  const int64_t bytes_per_token =
      2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * element_bytes;
  return static_cast<double>(scenario.batch) * (scenario.tokens + steps / 2.0) *
         static_cast<double>(bytes_per_token);
}

nlohmann::json ToJson(const std::vector<double>& values) {
  const Summary summary = Summarize(values);
  return {
      {"median", summary.median}, {"min", summary.min}, {"max", summary.max}, {"by_round", values}};
}

std::string Spread(const std::vector<double>& ratios) {
  const Summary summary = Summarize(ratios);
  char text[64];
  std::snprintf(text, sizeof(text), "%.3f (%.3f..%.3f)", summary.median, summary.min, summary.max);
  return text;
}

const Program& ThisProgram() {
  static const auto& program = *new Program{"engine_benchmark", FlagGroups(), kUsage};
  return program;
}

int Fail(const absl::Status& status, int exit_code) {
  return Fail(ThisProgram(), status, exit_code);
}

int Main(const std::vector<std::string>& arguments) {
  if (const std::optional<int> end = ReadCommandLine(ThisProgram(), arguments)) return *end;
  const absl::StatusOr<Settings> settings = ReadSettings();
  if (!settings.ok()) return Fail(settings.status(), kExitBadSetting);

  if (const absl::Status status = CheckDevice(settings->options.device); !status.ok()) {
    return Fail(status, kExitFailed);
  }

  std::vector<std::unique_ptr<Contestant>> contestants;
  for (const auto& [name, folder] : settings->models) {
    std::fprintf(stderr, "loading %s from %s\n", name.c_str(), folder.c_str());
    auto contestant = Contestant::Load(name, folder, settings->options);
    if (!contestant.ok()) return Fail(contestant.status(), kExitFailed);
    contestants.push_back(*std::move(contestant));
  }
  const bool with_bound =
      absl::GetFlag(FLAGS_bound) && settings->options.device == RunnerDevice::kCpu;
  Bounds bounds(settings->options.threads);
  double bandwidth = 0.0;
  if (with_bound) {
    for (const auto& contestant : contestants) bounds.Add(*contestant);
    bandwidth = bounds.ReadBandwidth();
  }

  std::vector<Times> times(settings->options.scenarios.size());
  for (Times& of_scenario : times) {
    of_scenario.steps.resize(contestants.size());
    of_scenario.products.resize(contestants.size());
  }
  for (int32_t round = 0; round <= settings->rounds; ++round) {
    std::fprintf(stderr, round == 0 ? "warm-up round\n" : "round %d of %d\n", round,
                 settings->rounds);
    for (size_t s = 0; s < settings->options.scenarios.size(); ++s) {
      const Scenario& scenario = settings->options.scenarios[s];
      for (size_t i = 0; i < contestants.size(); ++i) {
        const absl::StatusOr<double> seconds = contestants[i]->Time(scenario);
        if (!seconds.ok()) return Fail(seconds.status(), kExitFailed);
        if (round > 0) times[s].steps[i].push_back(*seconds);
        if (!with_bound) continue;
        const double products =
            bounds.SecondsOfProducts(*contestants[i], scenario, settings->options.steps);
        if (round > 0) times[s].products[i].push_back(products);
      }
    }
  }

  nlohmann::json results = nlohmann::json::array();
  for (size_t s = 0; s < settings->options.scenarios.size(); ++s) {
    const Scenario& scenario = settings->options.scenarios[s];
    std::printf("%s%s\n  %-16s %10s %12s  %-24s%s\n", s == 0 ? "" : "\n", scenario.Name().c_str(),
                "", "ms a step", "tokens/s",
                absl::StrCat("speed / ", contestants[0]->name()).c_str(),
                with_bound ? "speed / bound" : "");
    nlohmann::json models = nlohmann::json::array();
    for (size_t i = 0; i < contestants.size(); ++i) {
      const std::vector<double>& steps = times[s].steps[i];
      const double median = Summarize(steps).median;
      const std::vector<double> ratios = RatiosByRound(times[s].steps[0], steps);
      nlohmann::json entry = {{"name", contestants[i]->name()},
                              {"variant", VariantName(contestants[i]->checkpoint().variant())},
                              {"dtype", contestants[i]->description().dtype},
                              {"step_seconds", ToJson(steps)},
                              {"tokens_per_second", static_cast<double>(scenario.Rows()) / median},
                              {"speed_ratio_to_first", ToJson(ratios)}};
      std::string of_bound;
      if (with_bound) {
        std::vector<double> bound = times[s].products[i];
        const double kv_seconds =
            KvBytes(*contestants[i], scenario, settings->options.steps) / bandwidth;
        for (double& seconds : bound) seconds += kv_seconds;
        const std::vector<double> share = RatiosByRound(bound, steps);
        of_bound = Spread(share);
        entry["bound_seconds"] = ToJson(bound);
        entry["speed_ratio_to_bound"] = ToJson(share);
      }
      models.push_back(std::move(entry));
      std::printf("  %-16s %10.3f %12.1f  %-24s%s\n", contestants[i]->name().c_str(), median * 1e3,
                  static_cast<double>(scenario.Rows()) / median,
                  i == 0 ? "1" : Spread(ratios).c_str(), of_bound.c_str());
    }
    results.push_back({{"scenario", scenario.Name()},
                       {"kind", scenario.is_prefill ? "prefill" : "decode"},
                       {"batch", scenario.batch},
                       {"tokens", scenario.tokens},
                       {"models", std::move(models)}});
  }
  const std::string where = settings->options.device == RunnerDevice::kCpu
                                ? absl::StrCat(settings->options.threads, " threads")
                                : contestants[0]->description().device;
  std::printf("\n%s; medians of %d interleaved rounds, (smallest..largest) ratio of a round\n",
              where.c_str(), settings->rounds);
  if (with_bound) std::printf("memory read at %.1f GB/s\n", bandwidth / 1e9);

  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream file(path, std::ios::trunc);
    nlohmann::json json = {{"device", contestants[0]->description().device},
                           {"threads", settings->options.threads},
                           {"rounds", settings->rounds},
                           {"steps_per_round", settings->options.steps},
                           {"scenarios", std::move(results)}};
    if (with_bound) json["read_bytes_per_second"] = bandwidth;
    file << json.dump(1) << "\n";
    if (!file.flush()) {
      return Fail(absl::UnavailableError(absl::StrCat("cannot write ", path)), kExitFailed);
    }
  }
  return kExitDone;
}

}  // namespace
}  // namespace ddl::bench

int main(int argc, char** argv) {
  return ddl::bench::Main(std::vector<std::string>(argv + 1, argv + argc));
}
