// Prints docs/flags.md. `make flags-reference` writes it; a test compares.

#include <iostream>

#include "base/command_line.h"
#include "server/flags.h"

int main() {
  std::cout << "# Flags\n\n"
               "What `ddl_server --help` prints. `--name=value` shows the default. Every flag can "
               "also be "
               "set by `DDL_<FLAG>` in\n"
               "the environment (`DDL_MODEL`); the command line wins. `--flagfile=FILE` reads "
               "flags from a "
               "file, one per line.\n\n"
               "Generated from `server/flags.cc` by `make flags-reference`.\n"
            << ddl::FlagsReference(ddl::ServerFlagGroups());
}
