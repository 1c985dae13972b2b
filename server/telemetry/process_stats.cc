#include "server/telemetry/process_stats.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <system_error>

namespace ddl {
namespace {

// The Unix time at which the machine was started; 0 when unknown.
double BootTimeSeconds() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string key;
    double value = 0.0;
    if (words >> key >> value && key == "btime") return value;
  }
  return 0.0;
}

}  // namespace

std::optional<ProcessStats> ReadProcessStats() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  // The second field is the program's name in parentheses and may hold anything; the third
  // follows the last ')'. Numbers as in proc(5).
  std::istringstream fields(line.substr(line.rfind(')') + 1));
  std::string state;
  fields >> state;
  double value[25] = {};  // by proc(5)'s number, from 4 on
  for (int i = 4; i <= 24; ++i) fields >> value[i];
  if (!fields) return std::nullopt;

  const double ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  ProcessStats stats;
  stats.cpu_seconds = (value[14] + value[15]) / ticks_per_second;
  stats.start_time_seconds = BootTimeSeconds() + value[22] / ticks_per_second;
  stats.virtual_bytes = static_cast<int64_t>(value[23]);
  stats.resident_bytes = static_cast<int64_t>(value[24]) * sysconf(_SC_PAGESIZE);
  std::error_code error;
  const std::filesystem::directory_iterator fds("/proc/self/fd", error);
  // One of them is the iterator's own.
  if (!error) stats.open_fds = std::distance(begin(fds), end(fds)) - 1;
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) stats.max_fds = static_cast<int64_t>(limit.rlim_cur);
  return stats;
}

}  // namespace ddl
