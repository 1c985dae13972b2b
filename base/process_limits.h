#ifndef DDL_BASE_PROCESS_LIMITS_H_
#define DDL_BASE_PROCESS_LIMITS_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace ddl {

// What the operating system lets this process use, however large the machine is: its CPU affinity
// and the limits of its control groups (version 2, version 1 or both), with those of every ancestor
// that is mounted here. A limit above a container's own mount cannot be seen by anybody in it.
struct ProcessLimits {
  // Processors that its threads may run on, at least 1. The kernel keeps this within the cpusets.
  int affinity = 1;
  // Processors' worth of time in each period, by the tightest quota (cpu.max, cpu.cfs_quota_us),
  // such as 2.5; nullopt: as much as there is.
  std::optional<double> cpu_quota;
  // Bytes, the tightest of memory.max, memory.high and memory.limit_in_bytes; nullopt: none.
  std::optional<int64_t> memory_limit;
  // Bytes that the process could still take: the machine's MemAvailable, or what a control group's
  // limit leaves where that is less. As MemAvailable does, it counts file pages as free: the kernel
  // drops them first. nullopt: cannot be read.
  std::optional<int64_t> available_memory;
  // "PATH: what is wrong with it", for files that exist and could not be understood. They limit
  // nothing.
  std::vector<std::string> not_understood;

  // Whole processors, at least 1: of a quota of 2.5 two. Threads that compute together wait for the
  // last of them: a third, of which the quota has only half, would hold up the other two.
  int Processors() const;
};

// As of now. Any thread.
ProcessLimits ReadProcessLimits();

// The same of a file system at `root`, which holds proc/self/cgroup, proc/self/mountinfo,
// proc/meminfo and what mountinfo names as mounted, for a process with that affinity.
ProcessLimits ReadProcessLimits(const std::filesystem::path& root, int affinity);

// "processors=2 affinity=64 cpu_quota=2.5 memory_available=7900MiB memory_limit=8192MiB"; "none"
// where there is no limit.
std::string Summary(const ProcessLimits& limits);

}  // namespace ddl

#endif  // DDL_BASE_PROCESS_LIMITS_H_
