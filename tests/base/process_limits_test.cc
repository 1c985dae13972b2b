#include "base/process_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <thread>

namespace ddl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
namespace fs = std::filesystem;

constexpr int64_t kMiB = int64_t{1} << 20;

// Files by path. A path that ends in '/' is a folder, which nobody can read as a file.
using Files = std::map<std::string, std::string>;

class FakeRoot {
 public:
  explicit FakeRoot(const Files& files) {
    static int count = 0;
    path_ = fs::path(testing::TempDir()) /
            ("process_limits_" + std::to_string(getpid()) + "_" + std::to_string(count++));
    for (const auto& [name, content] : files) {
      const fs::path file = path_ / name;
      fs::create_directories(file.parent_path());
      if (name.back() != '/') std::ofstream(file) << content;
    }
  }
  ~FakeRoot() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Lines of mountinfo as the kernel writes them.
std::string V2Mount(const std::string& root, const std::string& point) {
  return "25 24 0:22 " + root + " " + point +
         " rw,nosuid shared:9 master:4 - cgroup2 cgroup2 rw,nsdelegate\n";
}
std::string V1Mount(const std::string& root, const std::string& point,
                    const std::string& controllers) {
  return "33 31 0:30 " + root + " " + point + " ro,nosuid - cgroup cgroup rw," + controllers + "\n";
}
const char kOtherMounts[] =
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n";
const char kMemInfo[] =
    "MemTotal:       16777216 kB\nMemFree:        1048576 kB\nMemAvailable:    8388608 kB\n";
constexpr int64_t kMachineAvailable = 8192 * kMiB;

// What a table's row expects. `processors` of an affinity of 8.
struct Expected {
  int processors = 8;
  std::optional<double> cpu_quota = std::nullopt;
  std::optional<int64_t> memory_limit = std::nullopt;
  std::optional<int64_t> available_memory = kMachineAvailable;
  int not_understood = 0;
};

struct Row {
  const char* name;
  Files files;
  Expected expected;
};

void ExpectRow(const Row& row) {
  SCOPED_TRACE(row.name);
  Files files = row.files;
  files.insert({"proc/meminfo", kMemInfo});  // unless the row has its own
  const FakeRoot root(files);
  const ProcessLimits limits = ReadProcessLimits(root.path(), 8);
  EXPECT_EQ(limits.affinity, 8);
  EXPECT_EQ(limits.Processors(), row.expected.processors);
  EXPECT_EQ(limits.cpu_quota, row.expected.cpu_quota);
  EXPECT_EQ(limits.memory_limit, row.expected.memory_limit);
  EXPECT_EQ(limits.available_memory, row.expected.available_memory);
  EXPECT_EQ(static_cast<int>(limits.not_understood.size()), row.expected.not_understood)
      << testing::PrintToString(limits.not_understood);
}

TEST(ProcessLimitsTest, ReadsVersion2) {
  const std::string mount = kOtherMounts + V2Mount("/", "/sys/fs/cgroup");
  const Row rows[] = {
      {"nothing is mounted", {}, {}},
      {"only other file systems", {{"proc/self/mountinfo", kOtherMounts}}, {}},
      {"no limits",
       {{"proc/self/cgroup", "0::/\n"},
        {"proc/self/mountinfo", mount},
        {"sys/fs/cgroup/cpu.max", "max 100000\n"},
        {"sys/fs/cgroup/memory.max", "max\n"},
        {"sys/fs/cgroup/memory.high", "max\n"}},
       {}},
      {"a container's own root",
       {{"proc/self/cgroup", "0::/\n"},
        {"proc/self/mountinfo", mount},
        {"sys/fs/cgroup/cpu.max", "200000 100000\n"},
        {"sys/fs/cgroup/memory.max", "1073741824\n"},
        {"sys/fs/cgroup/memory.high", "max\n"},
        {"sys/fs/cgroup/memory.current", "104857600\n"},
        {"sys/fs/cgroup/memory.stat", "anon 52428800\nactive_file 31457280\ninactive_file 0\n"}},
       {.processors = 2,
        .cpu_quota = 2.0,
        .memory_limit = 1024 * kMiB,
        .available_memory = (1024 - 70) * kMiB}},
      {"a unit of systemd",
       {{"proc/self/cgroup", "0::/system.slice/ddl-server.service\n"},
        {"proc/self/mountinfo", mount},
        {"sys/fs/cgroup/system.slice/ddl-server.service/memory.max", "536870912\n"},
        {"sys/fs/cgroup/system.slice/ddl-server.service/memory.current", "1048576\n"},
        {"sys/fs/cgroup/system.slice/ddl-server.service/cpu.max", "max 100000\n"}},
       {.memory_limit = 512 * kMiB, .available_memory = 511 * kMiB}},
      {"the tightest of all ancestors, each limit from another",
       {{"proc/self/cgroup", "0::/a/b/c\n"},
        {"proc/self/mountinfo", mount},
        {"sys/fs/cgroup/a/cpu.max", "150000 50000\n"},
        {"sys/fs/cgroup/a/b/cpu.max", "400000 100000\n"},
        {"sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n"},
        {"sys/fs/cgroup/a/memory.max", "4294967296\n"},
        {"sys/fs/cgroup/a/memory.current", "4294967296\n"},
        {"sys/fs/cgroup/a/b/memory.max", "1073741824\n"},
        {"sys/fs/cgroup/a/b/memory.current", "0\n"},
        {"sys/fs/cgroup/a/b/c/memory.max", "2147483648\n"}},
       {.processors = 3,
        .cpu_quota = 3.0,
        .memory_limit = 1024 * kMiB,
        .available_memory = 0}},  // a's is full
      {"a sibling's limits",
       {{"proc/self/cgroup", "0::/a/b\n"},
        {"proc/self/mountinfo", mount},
        {"sys/fs/cgroup/a/c/cpu.max", "100000 100000\n"},
        {"sys/fs/cgroup/b/cpu.max", "100000 100000\n"},
        {"sys/fs/cgroup/a/b/c/cpu.max", "100000 100000\n"}},
       {}},
      {"memory.high under memory.max",
       {{"proc/self/cgroup", "0::/\n"},
        {"proc/self/mountinfo", mount},
        {"sys/fs/cgroup/memory.max", "1073741824\n"},
        {"sys/fs/cgroup/memory.high", "805306368\n"},
        {"sys/fs/cgroup/memory.current", "1048576\n"}},
       {.memory_limit = 768 * kMiB, .available_memory = 767 * kMiB}},
      {"a limit above what the machine has",
       {{"proc/self/cgroup", "0::/\n"},
        {"proc/self/mountinfo", mount},
        {"sys/fs/cgroup/memory.max", "1099511627776\n"},
        {"sys/fs/cgroup/memory.current", "0\n"},
        {"sys/fs/cgroup/cpu.max", "1600000 100000\n"}},
       {.cpu_quota = 16.0, .memory_limit = 1048576 * kMiB}},
      {"more file pages than use, as counters are read one after the other",
       {{"proc/self/cgroup", "0::/\n"},
        {"proc/self/mountinfo", mount},
        {"sys/fs/cgroup/memory.max", "1048576\n"},
        {"sys/fs/cgroup/memory.current", "4096\n"},
        {"sys/fs/cgroup/memory.stat", "active_file 4096\ninactive_file 4096\n"}},
       {.memory_limit = kMiB, .available_memory = kMiB}},
  };
  for (const Row& row : rows) ExpectRow(row);
}

TEST(ProcessLimitsTest, RoundsQuotasDownToWholeProcessors) {
  const struct {
    const char* cpu_max;
    int processors;
  } rows[] = {
      {"1000 100000", 1},   {"99999 100000", 1},  {"100000 100000", 1}, {"199999 100000", 1},
      {"200000 100000", 2}, {"250000 100000", 2}, {"25000 10000", 2},   {"299999 100000", 2},
      {"300000 100000", 3}, {"799999 100000", 7}, {"800000 100000", 8}, {"850000 100000", 8},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.cpu_max);
    const FakeRoot root({{"proc/self/cgroup", "0::/\n"},
                         {"proc/self/mountinfo", V2Mount("/", "/sys/fs/cgroup")},
                         {"sys/fs/cgroup/cpu.max", row.cpu_max}});
    EXPECT_EQ(ReadProcessLimits(root.path(), 8).Processors(), row.processors);
  }
}

TEST(ProcessLimitsTest, ReadsVersion1) {
  const std::string mounts = kOtherMounts +
                             V1Mount("/", "/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct") +
                             V1Mount("/", "/sys/fs/cgroup/memory", "memory");
  // Docker's, without namespaces of control groups: the host's names, of which a part is mounted.
  const std::string docker = V1Mount("/docker/7f", "/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct") +
                             V1Mount("/docker/7f", "/sys/fs/cgroup/memory", "memory");
  const Row rows[] = {
      {"no limits",
       {{"proc/self/cgroup", "4:memory:/\n3:cpu,cpuacct:/\n1:name=systemd:/\n"},
        {"proc/self/mountinfo", mounts},
        {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"},
        {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"},
        {"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
        {"sys/fs/cgroup/memory/memory.usage_in_bytes", "4096\n"}},
       {}},
      {"nested, each controller's in its own place",
       {{"proc/self/cgroup", "4:memory:/pods/m\n3:cpu,cpuacct:/pods/c\n"},
        {"proc/self/mountinfo", mounts},
        {"sys/fs/cgroup/cpu,cpuacct/pods/cpu.cfs_quota_us", "600000\n"},
        {"sys/fs/cgroup/cpu,cpuacct/pods/cpu.cfs_period_us", "100000\n"},
        {"sys/fs/cgroup/cpu,cpuacct/pods/c/cpu.cfs_quota_us", "125000\n"},
        {"sys/fs/cgroup/cpu,cpuacct/pods/c/cpu.cfs_period_us", "50000\n"},
        {"sys/fs/cgroup/cpu,cpuacct/pods/m/cpu.cfs_quota_us", "1000\n"},
        {"sys/fs/cgroup/cpu,cpuacct/pods/m/cpu.cfs_period_us", "100000\n"},
        {"sys/fs/cgroup/memory/pods/memory.limit_in_bytes", "1073741824\n"},
        {"sys/fs/cgroup/memory/pods/memory.usage_in_bytes", "943718400\n"},
        {"sys/fs/cgroup/memory/pods/memory.stat",
         "active_file 1\ninactive_file 1\ntotal_active_file 1048576\n"
         "total_inactive_file 2097152\n"},
        {"sys/fs/cgroup/memory/pods/m/memory.limit_in_bytes", "536870912\n"},
        {"sys/fs/cgroup/memory/pods/m/memory.usage_in_bytes", "0\n"}},
       {.processors = 2,
        .cpu_quota = 2.5,
        .memory_limit = 512 * kMiB,
        .available_memory = (1024 - 900 + 3) * kMiB}},
      {"a container sees its own groups under the host's names",
       {{"proc/self/cgroup", "4:memory:/docker/7f\n3:cpu,cpuacct:/docker/7f/inner\n"},
        {"proc/self/mountinfo", docker},
        {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n"},
        {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"},
        {"sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us", "200000\n"},
        {"sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us", "100000\n"},
        {"sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n"},
        {"sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n"}},
       {.processors = 2, .cpu_quota = 2.0, .memory_limit = kMiB, .available_memory = kMiB}},
      {"another container's group, whose name begins alike",
       {{"proc/self/cgroup", "3:cpu,cpuacct:/docker/7f2\n"},
        {"proc/self/mountinfo", docker},
        {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n"},
        {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"}},
       {}},
      {"controllers mounted apart, on a path with a space",
       {{"proc/self/cgroup", "2:cpuacct:/\n1:cpu:/a:b\n"},
        {"proc/self/mountinfo",
         V1Mount("/", "/my\\040groups/cpu", "cpu") + V1Mount("/", "/cpuacct", "cpuacct")},
        {"cpuacct/cpu.cfs_quota_us", "100000\n"},  // there is no such file, but if there were
        {"cpuacct/cpu.cfs_period_us", "100000\n"},
        {"my groups/cpu/a:b/cpu.cfs_quota_us", "400000\n"},
        {"my groups/cpu/a:b/cpu.cfs_period_us", "100000\n"}},
       {.processors = 1, .cpu_quota = 1.0}},
  };
  for (const Row& row : rows) ExpectRow(row);
}

TEST(ProcessLimitsTest, ReadsBothVersionsOfAHybrid) {
  ExpectRow({"memory by version 1, processors by version 2",
             {{"proc/self/cgroup", "4:memory:/api/x\n1:name=systemd:/\n0::/user.slice\n"},
              {"proc/self/mountinfo", V1Mount("/", "/sys/fs/cgroup/memory", "memory") +
                                          V1Mount("/", "/sys/fs/cgroup/systemd", "name=systemd") +
                                          V2Mount("/", "/sys/fs/cgroup/unified")},
              {"sys/fs/cgroup/memory/api/x/memory.limit_in_bytes", "2097152\n"},
              {"sys/fs/cgroup/memory/api/x/memory.usage_in_bytes", "1048576\n"},
              {"sys/fs/cgroup/systemd/memory.limit_in_bytes", "2097152\n"},
              {"sys/fs/cgroup/unified/user.slice/cpu.max", "500000 100000\n"}},
             {.processors = 5,
              .cpu_quota = 5.0,
              .memory_limit = 2 * kMiB,
              .available_memory = 1 * kMiB}});
}

TEST(ProcessLimitsTest, FindsItsWayInNamespaces) {
  const Files quotas = {{"sys/fs/cgroup/cpu.max", "600000 100000\n"},
                        {"sys/fs/cgroup/a/cpu.max", "200000 100000\n"},
                        {"sys/fs/cgroup/b/cpu.max", "300000 100000\n"}};
  const struct {
    const char* group;
    const char* mount_root;
    std::optional<double> quota;
  } rows[] = {
      {"/", "/", 6.0},
      {"/a", "/", 2.0},
      {"/a/deleted", "/", 2.0},
      {"/../b", "/..", 3.0},  // moved out of the namespace, as is the mount
      {"/", "/..", 6.0},      // mounted before the namespace was made: an ancestor
      {"/a", "/../..", 6.0},
      {"/../a", "/../..", 6.0},
      {"/../b", "/", {}},  // the process lies outside what is mounted
      {"/../..", "/..", {}},
      {"/", "/../a", {}},  // a sibling is mounted
      {"/", "/a", {}},     // a child is
      {"/a", "/a/b", {}},
      {"/a/b", "/a", 3.0},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(std::string(row.group) + " under " + row.mount_root);
    Files files = quotas;
    files["proc/self/cgroup"] = "0::" + std::string(row.group) + "\n";
    files["proc/self/mountinfo"] = V2Mount(row.mount_root, "/sys/fs/cgroup");
    const FakeRoot root(files);
    EXPECT_EQ(ReadProcessLimits(root.path(), 8).cpu_quota, row.quota);
  }
  // The host's hierarchy mounted beside the container's own: whatever either shows counts.
  const FakeRoot root({{"proc/self/cgroup", "0::/pods/7f\n"},
                       {"proc/self/mountinfo",
                        V2Mount("/pods/7f", "/sys/fs/cgroup") + V2Mount("/", "/host/cgroup")},
                       {"sys/fs/cgroup/cpu.max", "400000 100000\n"},
                       {"host/cgroup/pods/cpu.max", "300000 100000\n"},
                       {"host/cgroup/pods/7f/cpu.max", "400000 100000\n"}});
  EXPECT_EQ(ReadProcessLimits(root.path(), 8).cpu_quota, 3.0);
}

TEST(ProcessLimitsTest, SaysWhatItDoesNotUnderstand) {
  const char* const bad_quotas[] = {"",
                                    "many 100000",
                                    "100000",
                                    "100000 0",
                                    "0 100000",
                                    "-5 100000",
                                    "100000 -1000",
                                    "1e5 100000",
                                    "99999999999999999999 100000",
                                    "100000 100000 7"};
  for (const char* quota : bad_quotas) {
    const FakeRoot root({{"proc/self/cgroup", "0::/\n"},
                         {"proc/self/mountinfo", V2Mount("/", "/sys/fs/cgroup")},
                         {"sys/fs/cgroup/cpu.max", quota}});
    const ProcessLimits limits = ReadProcessLimits(root.path(), 8);
    EXPECT_EQ(limits.Processors(), 8) << quota;
    EXPECT_THAT(limits.not_understood,
                ElementsAre(HasSubstr("sys/fs/cgroup/cpu.max: '" + std::string(quota) + "'")));
  }
  const Row rows[] = {
      {"garbage in every file of version 2",
       {{"proc/self/cgroup", "0::/\n"},
        {"proc/self/mountinfo", V2Mount("/", "/sys/fs/cgroup")},
        {"sys/fs/cgroup/cpu.max", "\x01\xff\n\n"},
        {"sys/fs/cgroup/memory.max", "lots\n"},
        {"sys/fs/cgroup/memory.high", "-4096\n"}},
       {.not_understood = 3}},
      {"a limit whose use is garbage counts whole",
       {{"proc/self/cgroup", "0::/\n"},
        {"proc/self/mountinfo", V2Mount("/", "/sys/fs/cgroup")},
        {"sys/fs/cgroup/memory.max", "1048576\n"},
        {"sys/fs/cgroup/memory.current", "?\n"},
        {"sys/fs/cgroup/memory.stat", "active_file\ninactive_file x\n\n"}},
       {.memory_limit = kMiB, .available_memory = kMiB, .not_understood = 1}},
      {"files that cannot be read",
       {{"proc/self/cgroup", "0::/\n"},
        {"proc/self/mountinfo", V2Mount("/", "/sys/fs/cgroup")},
        {"sys/fs/cgroup/cpu.max/", ""},
        {"sys/fs/cgroup/memory.max/", ""}},
       {.not_understood = 2}},
      {"a quota of version 1 without its period",
       {{"proc/self/cgroup", "1:cpu:/\n"},
        {"proc/self/mountinfo", V1Mount("/", "/cpu", "cpu")},
        {"cpu/cpu.cfs_quota_us", "200000\n"}},
       {.not_understood = 1}},
      {"garbage in proc",
       {{"proc/self/cgroup", "\n:\n::\n0::relative\n0:\n7:cpu\n\xff\n0::\n"},
        {"proc/self/mountinfo",
         "- cgroup2\n - \n1 2 3 / /x - cgroup2\n1 - cgroup2 cgroup2 rw\n\\0\\\n" +
             V2Mount("\\", "/sys/fs/cgroup")},
        {"sys/fs/cgroup/cpu.max", "100000 100000\n"}},
       {}},
      {"proc that cannot be read", {{"proc/self/cgroup/", ""}, {"proc/self/mountinfo/", ""}}, {}},
      {"memory information that is garbage",
       {{"proc/meminfo", "MemAvailable: lots kB\nMemAvailable:\n"}},
       {.available_memory = std::nullopt}},
  };
  for (const Row& row : rows) ExpectRow(row);
}

TEST(ProcessLimitsTest, SummaryIsForTheLog) {
  EXPECT_EQ(Summary({}),
            "processors=1 affinity=1 cpu_quota=none memory_available=unknown memory_limit=none");
  EXPECT_EQ(Summary({.affinity = 64,
                     .cpu_quota = 2.5,
                     .memory_limit = 1024 * kMiB,
                     .available_memory = 1000 * kMiB + 1,
                     .not_understood = {}}),
            "processors=2 affinity=64 cpu_quota=2.5 memory_available=1000MiB memory_limit=1024MiB");
}

// Whatever this machine's are.
TEST(ProcessLimitsTest, ReadsThisProcess) {
  const ProcessLimits limits = ReadProcessLimits();
  EXPECT_EQ(limits.affinity, static_cast<int>(std::thread::hardware_concurrency()));
  EXPECT_GE(limits.Processors(), 1);
  EXPECT_LE(limits.Processors(), limits.affinity);
  EXPECT_GT(limits.available_memory.value_or(0), 0);
  EXPECT_THAT(limits.not_understood, IsEmpty());
}

}  // namespace
}  // namespace ddl
