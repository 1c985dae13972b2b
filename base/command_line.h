#ifndef DDL_BASE_COMMAND_LINE_H_
#define DDL_BASE_COMMAND_LINE_H_

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

// Sets Abseil flags from a command line and the environment. absl::ParseCommandLine ends the
// process with texts and an exit code of its own; this returns a status instead.

namespace ddl {

// Flags that belong together, in the order in which --help shows them.
struct FlagGroup {
  std::string_view title;
  std::vector<std::string_view> flags;  // names of defined flags
};

// kCheck is not ParseCommandLine's to say: the program has a flag for it (config.h).
enum class CommandLineAction { kRun, kCheck, kHelp, kVersion };

// Environment variables by name.
using Environment = std::map<std::string, std::string>;

// Sets the flags named in `groups`: first from DDL_<FLAG> in `environment` (the name in
// capitals; other variables are none of ours), then from `arguments` in order (without the
// program's name), so that the command line wins and its last word counts. Accepts --name=value,
// --name value, --name and --noname for booleans, and --flagfile=FILE[,FILE...], whose lines are
// read as if they stood in its place ('#' starts a comment line). --help and --version are
// reported, not acted on, and end the reading.
//
// INVALID_ARGUMENT, in one line, for the first flag that is unknown, lacks a value or has a bad
// one. The flags are global, so this is for the start of main.
absl::StatusOr<CommandLineAction> ParseCommandLine(absl::Span<const FlagGroup> groups,
                                                   absl::Span<const std::string> arguments,
                                                   const Environment& environment);

// What --help prints.
std::string HelpText(absl::Span<const FlagGroup> groups, std::string_view usage);

// The same of the flags alone, in Markdown: a section for each group.
std::string FlagsReference(absl::Span<const FlagGroup> groups);

}  // namespace ddl

#endif  // DDL_BASE_COMMAND_LINE_H_
