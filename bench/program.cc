#include "bench/program.h"

#include <cstdio>

#include "absl/status/statusor.h"

namespace ddl::bench {

std::optional<int> ReadCommandLine(const Program& program,
                                   absl::Span<const std::string> arguments) {
  const absl::StatusOr<CommandLineAction> action = ParseCommandLine(program.flags, arguments, {});
  if (!action.ok()) return Fail(program, action.status(), kExitBadSetting);
  if (*action == CommandLineAction::kHelp) {
    std::fputs(HelpText(program.flags, program.usage).c_str(), stdout);
    return kExitDone;
  }
  if (*action == CommandLineAction::kVersion) {
    std::printf("%s %s\n", program.name, DDL_VERSION);
    return kExitDone;
  }
  return std::nullopt;
}

int Fail(const Program& program, const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "%s: %s\n", program.name, std::string(status.message()).c_str());
  return exit_code;
}

}  // namespace ddl::bench
