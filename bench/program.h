#ifndef DDL_BENCH_PROGRAM_H_
#define DDL_BENCH_PROGRAM_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/command_line.h"

// What the programs that measure have in common: how they read a command line, and how they fail.

namespace ddl::bench {

inline constexpr int kExitDone = 0;
inline constexpr int kExitBadSetting = 2;

struct Program {
  const char* name;
  absl::Span<const FlagGroup> flags;
  const char* usage;  // above the flags in --help
};

// Sets the flags, from the command line alone: DDL_MODEL and the like are the server's. The exit
// code when the program is to end at once, which is after --help, --version or a bad flag; what it
// has to say of them is printed.
std::optional<int> ReadCommandLine(const Program& program, absl::Span<const std::string> arguments);

// Prints the failure in one line and returns `exit_code`.
int Fail(const Program& program, const absl::Status& status, int exit_code);

}  // namespace ddl::bench

#endif  // DDL_BENCH_PROGRAM_H_
