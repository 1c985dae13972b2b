// Load generator for a running server. docs/performance.md says how to read what it prints.

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/signals.h"
#include "bench/load_generator.h"
#include "bench/load_report.h"
#include "bench/program.h"
#include "bench/token_lengths.h"
#include "bench/workload.h"
#include "ddl/v1/inference.grpc.pb.h"

ABSL_FLAG(std::string, address, "127.0.0.1:8500", "HOST:PORT of the server.");
ABSL_FLAG(std::string, model, "", "The model to ask. Empty: the server's default model.");
ABSL_FLAG(int32_t, connections, 1, "TCP connections; the requests take them in turn.");
ABSL_FLAG(absl::Duration, connect_timeout, absl::Seconds(10),
          "How long to wait for the server to be there.");
ABSL_FLAG(absl::Duration, timeout, absl::ZeroDuration(),
          "Deadline of each request, such as 30s. 0: none.");

ABSL_FLAG(std::string, concurrency, "",
          "Closed loop: so many requests are always in flight. A list, such as 1,8,32, measures "
          "each in turn. Without --rate the default is 1.");
ABSL_FLAG(std::string, rate, "",
          "Open loop: requests a second, arriving at random (Poisson) times whether or not earlier "
          "ones are answered; latencies count from the arrival. A list measures each in turn.");
ABSL_FLAG(int64_t, requests, 0, "Requests of each measurement. 0: no bound but --duration.");
ABSL_FLAG(absl::Duration, duration, absl::ZeroDuration(),
          "How long each measurement sends requests; those in flight are waited for. 0: until "
          "--requests are sent, or 10s without that.");
ABSL_FLAG(int64_t, warmup_requests, 4, "Requests before each measurement that are not counted.");

ABSL_FLAG(std::string, prompt_tokens, "128",
          "Length of prompts and of embed inputs: N, A..B (uniform) or @FILE (one length a line, "
          "chosen at random).");
ABSL_FLAG(std::string, output_tokens, "128",
          "Length of completions, likewise. End tokens are ignored, so it is exact.");
ABSL_FLAG(int32_t, shared_prefix_tokens, 0, "Leading tokens that all prompts have in common.");
ABSL_FLAG(double, unary_share, 0.0,
          "Share of the completions, 0...1, that are asked for with Generate instead of "
          "GenerateStream.");
ABSL_FLAG(double, embed_share, 0.0, "Share of all requests, 0...1, that are Embed.");
ABSL_FLAG(int32_t, inputs_per_embed, 8, "Inputs of each Embed.");
ABSL_FLAG(double, temperature, 0.0, "Sampling temperature, 0...2; 0 is greedy.");
ABSL_FLAG(uint64_t, seed, 0,
          "Decides prompts, lengths and arrivals. The same seed again meets the server's prefix "
          "cache.");

ABSL_FLAG(std::string, json, "", "File to write the results to, as JSON. Empty: none.");
ABSL_FLAG(bool, progress, true, "A line on stderr every second.");

namespace ddl::bench {
namespace {

constexpr int kExitNothingMeasured = 1;
constexpr int kExitInterrupted = 130;  // as a shell reports SIGINT

constexpr absl::Duration kDefaultDuration = absl::Seconds(10);

const std::vector<FlagGroup>& FlagGroups() {
  static const auto& groups = *new std::vector<FlagGroup>{
      {"Server", {"address", "model", "connections", "connect_timeout", "timeout"}},
      {"Load", {"concurrency", "rate", "requests", "duration", "warmup_requests"}},
      {"Requests",
       {"prompt_tokens", "output_tokens", "shared_prefix_tokens", "unary_share", "embed_share",
        "inputs_per_embed", "temperature", "seed"}},
      {"Results", {"json", "progress"}},
  };
  return groups;
}

constexpr char kUsage[] =
    R"(Sends requests to a ddl_server and reports throughput and latencies, in the terms of `vllm bench serve`.

  ddl_bench --address=HOST:PORT --concurrency=1,8,32 --requests=200

Exit codes: 0 when measured (failed requests are in the report), 1 when the server cannot be reached
or answered no request, 2 for a bad flag, 130 after Ctrl-C, with what was measured until then.
)";

absl::Status Invalid(absl::string_view flag, absl::string_view value, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", value, ": ", why));
}

struct Settings {
  std::vector<Load> loads;
  std::optional<TokenLengths> prompt_tokens;
  std::optional<TokenLengths> output_tokens;
};

absl::Status ReadLoads(Settings& settings) {
  const std::string concurrencies = absl::GetFlag(FLAGS_concurrency);
  const std::string rates = absl::GetFlag(FLAGS_rate);
  if (!concurrencies.empty() && !rates.empty()) {
    return absl::InvalidArgumentError(
        "--concurrency (closed loop) and --rate (open loop) exclude each other");
  }
  if (!rates.empty()) {
    for (const absl::string_view text : absl::StrSplit(rates, ',')) {
      double rate;
      if (!absl::SimpleAtod(text, &rate) || !std::isfinite(rate) || rate <= 0.0) {
        return Invalid("rate", rates, "must be requests a second above 0, or a list of them");
      }
      settings.loads.emplace_back().rate = rate;
    }
  } else {
    const std::string list = concurrencies.empty() ? "1" : concurrencies;
    for (const absl::string_view text : absl::StrSplit(list, ',')) {
      int32_t concurrency;
      if (!absl::SimpleAtoi(text, &concurrency) || concurrency < 1 || concurrency > 100000) {
        return Invalid("concurrency", list, "must be a number in 1...100000, or a list of them");
      }
      settings.loads.emplace_back().concurrency = concurrency;
    }
  }
  const int64_t requests = absl::GetFlag(FLAGS_requests);
  absl::Duration duration = absl::GetFlag(FLAGS_duration);
  if (requests < 0) return Invalid("requests", absl::StrCat(requests), "must be at least 0");
  if (duration < absl::ZeroDuration() || duration > absl::Hours(1000)) {
    return Invalid("duration", absl::FormatDuration(duration), "must be 0...1000h");
  }
  if (requests == 0 && duration == absl::ZeroDuration()) duration = kDefaultDuration;
  const int64_t warmup = absl::GetFlag(FLAGS_warmup_requests);
  if (warmup < 0) return Invalid("warmup_requests", absl::StrCat(warmup), "must be at least 0");
  for (size_t i = 0; i < settings.loads.size(); ++i) {
    Load& load = settings.loads[i];
    if (requests > 0) load.requests = requests;
    if (duration > absl::ZeroDuration()) load.duration = absl::ToChronoNanoseconds(duration);
    load.warmup_requests = warmup;
    load.phase = 2 * i;
    load.seed = absl::GetFlag(FLAGS_seed);
  }
  return absl::OkStatus();
}

absl::StatusOr<Settings> ReadSettings() {
  Settings settings;
  if (absl::Status status = ReadLoads(settings); !status.ok()) return status;
  for (const bool prompt : {true, false}) {
    const std::string text = absl::GetFlag(prompt ? FLAGS_prompt_tokens : FLAGS_output_tokens);
    const absl::StatusOr<TokenLengths> lengths = TokenLengths::Parse(text);
    if (!lengths.ok()) {
      return Invalid(prompt ? "prompt_tokens" : "output_tokens", text, lengths.status().message());
    }
    (prompt ? settings.prompt_tokens : settings.output_tokens) = *lengths;
  }
  struct Number {
    const char* flag;
    double value, least, most;
  };
  const Number numbers[] = {
      {"connections", static_cast<double>(absl::GetFlag(FLAGS_connections)), 1, 1000},
      {"unary_share", absl::GetFlag(FLAGS_unary_share), 0, 1},
      {"embed_share", absl::GetFlag(FLAGS_embed_share), 0, 1},
      {"inputs_per_embed", static_cast<double>(absl::GetFlag(FLAGS_inputs_per_embed)), 1, 100000},
      {"shared_prefix_tokens", static_cast<double>(absl::GetFlag(FLAGS_shared_prefix_tokens)), 0,
       1e9},
      {"temperature", absl::GetFlag(FLAGS_temperature), 0, 2},
      {"timeout", absl::ToDoubleSeconds(absl::GetFlag(FLAGS_timeout)), 0, 1e6},
      {"connect_timeout", absl::ToDoubleSeconds(absl::GetFlag(FLAGS_connect_timeout)), 0, 1e6},
  };
  for (const Number& number : numbers) {
    if (!(number.value >= number.least && number.value <= number.most)) {
      return Invalid(number.flag, absl::StrCat(number.value),
                     absl::StrCat("must be ", number.least, "...", number.most));
    }
  }
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    // Better now than after the measurement.
    if (!std::ofstream(path, std::ios::app).is_open()) {
      return Invalid("json", path, "cannot be written");
    }
  }
  return settings;
}

std::vector<std::shared_ptr<grpc::Channel>> MakeChannels() {
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int32_t i = 0; i < absl::GetFlag(FLAGS_connections); ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    // Or all channels to one address would share a connection.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channels.push_back(grpc::CreateCustomChannel(absl::GetFlag(FLAGS_address),
                                                 grpc::InsecureChannelCredentials(), arguments));
  }
  return channels;
}

struct ServerFacts {
  ddl::v1::ModelInfo model;
  ddl::v1::ServerInfo server;
};

absl::StatusOr<ServerFacts> AskServer(const std::shared_ptr<grpc::Channel>& channel) {
  const std::string address = absl::GetFlag(FLAGS_address);
  const auto deadline = absl::ToChronoTime(absl::Now() + absl::GetFlag(FLAGS_connect_timeout));
  const auto stub = ddl::v1::ModelService::NewStub(channel);
  ServerFacts facts;
  const auto check = [&](const grpc::Status& status, const char* method) {
    if (status.ok()) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("no server at ", address, ": ", method, ": ", status.error_message()));
  };
  ddl::v1::GetModelInfoRequest request;
  request.set_model(absl::GetFlag(FLAGS_model));
  // A port that refuses connections does so at once: there is nothing to wait for, unless the
  // server is just being started.
  const bool connected = channel->WaitForConnected(deadline);
  if (!connected) {
    return absl::UnavailableError(
        absl::StrCat("no server at ", address, " within ",
                     absl::FormatDuration(absl::GetFlag(FLAGS_connect_timeout))));
  }
  grpc::ClientContext model_context;
  model_context.set_deadline(deadline);
  if (auto status =
          check(stub->GetModelInfo(&model_context, request, &facts.model), "GetModelInfo");
      !status.ok()) {
    return status;
  }
  grpc::ClientContext server_context;
  server_context.set_deadline(deadline);
  if (auto status = check(
          stub->GetServerInfo(&server_context, ddl::v1::GetServerInfoRequest(), &facts.server),
          "GetServerInfo");
      !status.ok()) {
    return status;
  }
  return facts;
}

absl::Status CheckContext(const Settings& settings, const ddl::v1::ModelInfo& model) {
  const int64_t longest =
      int64_t{settings.prompt_tokens->longest()} +
      (absl::GetFlag(FLAGS_embed_share) < 1.0 ? settings.output_tokens->longest() : 0);
  if (longest <= model.max_context_length()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--prompt_tokens=", absl::GetFlag(FLAGS_prompt_tokens),
      " and --output_tokens=", absl::GetFlag(FLAGS_output_tokens), " make up to ", longest,
      " tokens: the context of model '", model.name(), "' is ", model.max_context_length()));
}

void ReportProgress(const std::string& load, const LoadProgress& progress) {
  const double seconds = std::chrono::duration<double>(progress.elapsed).count();
  std::fprintf(stderr, "%s%s: %.0f s, %lld answered, %lld failed, %lld in flight, %.1f tokens/s\n",
               load.c_str(), progress.warming_up ? " (warm-up)" : "", seconds,
               static_cast<long long>(progress.answered), static_cast<long long>(progress.failed),
               static_cast<long long>(progress.in_flight),
               static_cast<double>(progress.output_tokens) / seconds);
}

nlohmann::json ToJson(const ServerFacts& facts, absl::Span<const LoadReport> reports) {
  nlohmann::json settings;
  for (const FlagGroup& group : FlagGroups()) {
    for (const std::string_view name : group.flags) {
      settings[std::string(name)] =
          absl::FindCommandLineFlag(absl::string_view(name.data(), name.size()))->CurrentValue();
    }
  }
  nlohmann::json rows = nlohmann::json::array();
  for (const LoadReport& report : reports) rows.push_back(ToJson(report));
  return {
      {"date", absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone())},
      {"backend", "ddl"},
      {"settings", settings},
      {"model",
       {{"name", facts.model.name()},
        {"variant", facts.model.variant()},
        {"dtype", facts.model.dtype()},
        {"device", facts.model.device()},
        {"parameters", facts.model.parameter_count()}}},
      {"server", {{"version", facts.server.version()}, {"git_commit", facts.server.git_commit()}}},
      {"rows", rows},
  };
}

const Program& ThisProgram() {
  static const auto& program = *new Program{"ddl_bench", FlagGroups(), kUsage};
  return program;
}

int Fail(const absl::Status& status, int exit_code) {
  return Fail(ThisProgram(), status, exit_code);
}

int Main(const std::vector<std::string>& arguments) {
  if (const std::optional<int> end = ReadCommandLine(ThisProgram(), arguments)) return *end;
  const absl::StatusOr<Settings> settings = ReadSettings();
  if (!settings.ok()) return Fail(settings.status(), kExitBadSetting);

  BlockSignals();
  const std::vector<std::shared_ptr<grpc::Channel>> channels = MakeChannels();
  absl::StatusOr<ServerFacts> facts = AskServer(channels[0]);
  if (!facts.ok()) return Fail(facts.status(), kExitNothingMeasured);
  if (absl::Status status = CheckContext(*settings, facts->model); !status.ok()) {
    return Fail(status, kExitBadSetting);
  }

  const Workload workload({.model = absl::GetFlag(FLAGS_model),
                           .vocab_size = facts->model.vocab_size(),
                           .prompt_tokens = *settings->prompt_tokens,
                           .output_tokens = *settings->output_tokens,
                           .unary_share = absl::GetFlag(FLAGS_unary_share),
                           .embed_share = absl::GetFlag(FLAGS_embed_share),
                           .inputs_per_embed = absl::GetFlag(FLAGS_inputs_per_embed),
                           .shared_prefix_tokens = absl::GetFlag(FLAGS_shared_prefix_tokens),
                           .temperature = static_cast<float>(absl::GetFlag(FLAGS_temperature)),
                           .seed = absl::GetFlag(FLAGS_seed)});
  std::optional<Clock::duration> timeout;
  if (absl::GetFlag(FLAGS_timeout) > absl::ZeroDuration()) {
    timeout = absl::ToChronoNanoseconds(absl::GetFlag(FLAGS_timeout));
  }
  LoadGenerator generator(channels, &workload, timeout);
  const SignalWatcher signals({.stop =
                                   [&generator](int count) {
                                     if (count > 1) std::_Exit(kExitInterrupted);
                                     generator.Stop();
                                   },
                               .verbose = {},
                               .not_verbose = {}});

  std::vector<LoadReport> reports;
  for (const Load& load : settings->loads) {
    const std::string name = MakeReport(load, {}).load;
    const LoadResult result = generator.Run(load, [&name](const LoadProgress& progress) {
      if (absl::GetFlag(FLAGS_progress)) ReportProgress(name, progress);
    });
    reports.push_back(MakeReport(load, result));
    if (result.stopped || result.unreachable) break;
  }
  std::printf("model %s (%s, %s, %s), server %s at commit %s\n\n%s", facts->model.name().c_str(),
              facts->model.variant().c_str(), facts->model.dtype().c_str(),
              facts->model.device().c_str(), facts->server.version().c_str(),
              facts->server.git_commit().c_str(), Table(reports).c_str());
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream file(path, std::ios::trunc);
    file << ToJson(*facts, reports).dump(1) << "\n";
    if (!file.flush()) {
      return Fail(absl::UnavailableError(absl::StrCat("cannot write ", path)),
                  kExitNothingMeasured);
    }
  }
  const LoadReport& last = reports.back();
  if (last.stopped) return kExitInterrupted;
  if (last.unreachable) {
    return Fail(absl::UnavailableError(absl::StrCat("the server at ", absl::GetFlag(FLAGS_address),
                                                    " no longer answers: ", last.first_failure)),
                kExitNothingMeasured);
  }
  for (const LoadReport& report : reports) {
    if (report.completed == 0) {
      return Fail(absl::UnavailableError(absl::StrCat(report.load, ": no request was answered")),
                  kExitNothingMeasured);
    }
  }
  return kExitDone;
}

}  // namespace
}  // namespace ddl::bench

int main(int argc, char** argv) {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);  // as the server does
  return ddl::bench::Main(std::vector<std::string>(argv + 1, argv + argc));
}
