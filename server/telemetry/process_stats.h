#ifndef DDL_SERVER_TELEMETRY_PROCESS_STATS_H_
#define DDL_SERVER_TELEMETRY_PROCESS_STATS_H_

#include <cstdint>
#include <optional>

namespace ddl {

// What the kernel says of this process.
struct ProcessStats {
  double cpu_seconds = 0.0;         // user and system, since the start
  double start_time_seconds = 0.0;  // since the Unix epoch
  int64_t resident_bytes = 0;
  int64_t virtual_bytes = 0;
  int64_t open_fds = 0;
  int64_t max_fds = 0;
};

// Reads /proc/self; nothing where that is not there.
std::optional<ProcessStats> ReadProcessStats();

}  // namespace ddl

#endif  // DDL_SERVER_TELEMETRY_PROCESS_STATS_H_
