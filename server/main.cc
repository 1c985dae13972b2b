#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "base/process_limits.h"
#include "base/signals.h"
#include "model/kernels/instruction_set.h"
#include "model/model_runner.h"
#include "server/build_info.h"
#include "server/config.h"
#include "server/flags.h"
#include "server/models/model_loader.h"
#include "server/server.h"
#include "server/telemetry/logging.h"

extern char** environ;

namespace {

// Also in docs and in --help (config.cc).
constexpr int kExitStopped = 0;
constexpr int kExitCannotRun = 1;
constexpr int kExitBadSetting = 2;

ddl::Environment ReadEnvironment() {
  ddl::Environment environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) environment[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return environment;
}

int Fail(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "ddl_server: %s\n", std::string(status.message()).c_str());
  return exit_code;
}

// Those that work here.
std::string InstructionSetsHere() {
  std::vector<std::string> names;
  for (const ddl::kernels::InstructionSet set : ddl::kernels::AllInstructionSets()) {
    const bool is_for_tests = set == ddl::kernels::InstructionSet::kAmxEmulated;
    if (!is_for_tests && ddl::kernels::WhyUnsupported(set).empty()) {
      names.emplace_back(ddl::kernels::Name(set));
    }
  }
  return absl::StrJoin(names, ", ");
}

absl::Status CheckInstructionSet(const ddl::ServerConfig& config) {
  if (!config.instruction_set.has_value()) return absl::OkStatus();
  const std::string why = ddl::kernels::WhyUnsupported(*config.instruction_set);
  if (why.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--instruction_set=", ddl::kernels::Name(*config.instruction_set), ": ", why,
                   "; here are ", InstructionSetsHere()));
}

// What a start does before it listens, and --check before it loads.
absl::Status CheckSettings(const ddl::ServerConfig& config) {
  if (absl::Status status = CheckInstructionSet(config); !status.ok()) return status;
  if (!config.device.has_value()) return absl::OkStatus();
  const absl::Status status = ddl::CheckDevice(*config.device);
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("--device=cuda: ", status.message()));
}

void LogMachine(const ddl::ServerConfig& config) {
  const ddl::ProcessLimits limits = ddl::ReadProcessLimits();
  spdlog::info("limits {}", Summary(limits));
  // This also asks for AMX, which is to be done before there are threads.
  const std::string no_amx = ddl::kernels::WhyUnsupported(ddl::kernels::InstructionSet::kAmx);
  spdlog::info("instruction sets {}{}", InstructionSetsHere(),
               no_amx.empty() ? "" : absl::StrCat("; not amx: ", no_amx));
  for (const std::string& file : limits.not_understood) {
    spdlog::warn("no limit is taken from {}", file);
  }
  if (config.num_threads > limits.Processors()) {
    spdlog::warn(
        "--threads={} is more than the {} processors that affinity and control groups let this "
        "process use: threads will wait for each other",
        config.num_threads, limits.Processors());
  }
}

int Check(const ddl::ServerConfig& config) {
  if (absl::Status status = CheckSettings(config); !status.ok()) {
    return Fail(status, kExitBadSetting);
  }
  ddl::Server server(config, ddl::LoadModel);
  const absl::StatusOr<std::vector<std::string>> lines = server.Check();
  if (!lines.ok()) return Fail(lines.status(), kExitBadSetting);
  for (const std::string& line : *lines) std::printf("ok %s\n", line.c_str());
  return kExitStopped;
}

int Run(const ddl::ServerConfig& config) {
  if (absl::Status status = CheckSettings(config); !status.ok()) {
    return Fail(status, kExitBadSetting);
  }
  ddl::BlockSignals();
  // Whatever is stuck would also hold up an orderly end.
  ddl::Server server(config, ddl::LoadModel, absl::Now, {.end = [](const std::string& what) {
                       std::_Exit(Fail(absl::UnavailableError(what), kExitCannotRun));
                     }});
  const ddl::SignalWatcher signals(
      {.stop = [&server](int /*count*/) { server.RequestStop(); },
       .verbose = [] { ddl::ChangeLogLevel(ddl::LogLevel::kDebug); },
       .not_verbose = [&config] { ddl::ChangeLogLevel(config.log_level); }});
  if (absl::Status status = server.Listen(); !status.ok()) {
    return Fail(status, absl::IsInvalidArgument(status) ? kExitBadSetting : kExitCannotRun);
  }
  if (absl::Status status = server.Serve(); !status.ok()) {
    if (!absl::IsUnavailable(status)) return Fail(status, kExitBadSetting);
    // A device that is lost may fail whatever still holds memory of it.
    std::_Exit(Fail(status, kExitCannotRun));
  }
  spdlog::info("stopped");
  // Nobody is being served any more, and a loader that cannot be interrupted holds nothing but
  // memory.
  if (server.still_loading()) std::_Exit(kExitStopped);
  return kExitStopped;
}

}  // namespace

int main(int argc, char** argv) {
  // Debian's Abseil is built without NDEBUG: it remembers in which order gRPC has taken which
  // locks, in memory that grows for millions of tokens, and looks it up at every lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const absl::StatusOr<ddl::CommandLine> command_line =
      ddl::ReadCommandLine(arguments, ReadEnvironment());
  if (!command_line.ok()) return Fail(command_line.status(), kExitBadSetting);
  switch (command_line->action) {
    case ddl::CommandLineAction::kHelp:
      std::fputs(ddl::ServerHelpText().c_str(), stdout);
      return kExitStopped;
    case ddl::CommandLineAction::kVersion:
      std::printf("ddl_server %s\n", std::string(ddl::GetBuildInfo().version).c_str());
      return kExitStopped;
    case ddl::CommandLineAction::kCheck:
    case ddl::CommandLineAction::kRun:
      break;
  }
  ddl::SetUpLogging(command_line->config.log_level, command_line->config.log_format);
  LogMachine(command_line->config);
  return command_line->action == ddl::CommandLineAction::kCheck ? Check(command_line->config)
                                                                : Run(command_line->config);
}
