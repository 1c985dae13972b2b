#ifndef DDL_SERVER_FLAGS_H_
#define DDL_SERVER_FLAGS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/command_line.h"
#include "server/config.h"

namespace ddl {

struct CommandLine {
  CommandLineAction action = CommandLineAction::kRun;
  ServerConfig config;  // with kRun and kCheck
};

// Reads the server's flags. INVALID_ARGUMENT, in one line, for what ParseCommandLine refuses and
// for settings that cannot be.
absl::StatusOr<CommandLine> ReadCommandLine(absl::Span<const std::string> arguments,
                                            const Environment& environment);

// The server's flags in the groups of --help: every flag that flags.cc defines.
absl::Span<const FlagGroup> ServerFlagGroups();
std::string ServerHelpText();

}  // namespace ddl

#endif  // DDL_SERVER_FLAGS_H_
