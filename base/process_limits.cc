#include "base/process_limits.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ddl {
namespace {

namespace fs = std::filesystem;

// nullopt where there is none. Empty for a file that cannot be read.
std::optional<std::string> ReadFile(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return std::nullopt;
  std::ostringstream content;
  content << std::ifstream(path).rdbuf();
  std::string text = content.str();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::vector<std::string> Lines(const std::optional<std::string>& text) {
  if (!text.has_value()) return {};
  return absl::StrSplit(*text, '\n', absl::SkipEmpty());
}

// Where the lines are "KEY NUMBER" or "KEY: NUMBER kB".
std::optional<int64_t> NumberOf(const std::vector<std::string>& lines, std::string_view key) {
  for (const std::string& line : lines) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    int64_t value = 0;
    if (words.size() >= 2 && words[0] == key && absl::SimpleAtoi(words[1], &value)) return value;
  }
  return std::nullopt;
}

// A space is "\040" in mountinfo, for instance.
std::string Unescape(const std::string& text) {
  const auto is_digit = [&](size_t i) {
    return i < text.size() && text[i] >= '0' && text[i] <= '7';
  };
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && is_digit(i + 1) && is_digit(i + 2) && is_digit(i + 3)) {
      plain += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                 (text[i + 3] - '0'));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

// A hierarchy of control groups as mounted here.
struct Mount {
  std::string root;   // the group that the mount shows at `point`
  std::string point;  // absolute
  bool is_v2 = false;
  std::vector<std::string> options;  // of version 1: its controllers are among them
};

std::optional<Mount> ParseMount(const std::string& line) {
  const std::pair<std::string, std::string> halves =
      absl::StrSplit(line, absl::MaxSplits(" - ", 1));
  const std::vector<std::string> mount = absl::StrSplit(halves.first, ' ');
  const std::vector<std::string> file_system = absl::StrSplit(halves.second, ' ');
  if (mount.size() < 5 || file_system.size() < 3) return std::nullopt;
  if (file_system[0] != "cgroup" && file_system[0] != "cgroup2") return std::nullopt;
  return Mount{.root = Unescape(mount[3]),
               .point = Unescape(mount[4]),
               .is_v2 = file_system[0] == "cgroup2",
               .options = absl::StrSplit(file_system[2], ',')};
}

// The process's place in a hierarchy.
struct Membership {
  std::vector<std::string> controllers;  // none: version 2
  std::string group;
};

std::optional<Membership> ParseMembership(const std::string& line) {
  const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
  if (parts.size() < 3 || parts[2].empty() || parts[2][0] != '/') return std::nullopt;
  return Membership{.controllers = absl::StrSplit(parts[1], ',', absl::SkipEmpty()),
                    .group = parts[2]};
}

bool IsOf(const Membership& membership, const Mount& mount) {
  if (membership.controllers.empty()) return mount.is_v2;
  return !mount.is_v2 &&
         std::ranges::any_of(membership.controllers, [&](const std::string& controller) {
           return std::ranges::find(mount.options, controller) != mount.options.end();
         });
}

std::vector<std::string> Components(const std::string& path) {
  return absl::StrSplit(path, '/', absl::SkipEmpty());
}

// The folders of the process's group and of its ancestors, as far as the mount shows them.
// Both names are relative to the process's cgroup namespace, so either may begin with "..".
std::vector<fs::path> Folders(const fs::path& root, const Mount& mount, const std::string& group) {
  const auto is_up = [](const std::string& component) { return component == ".."; };
  const std::vector<std::string> top = Components(mount.root);
  const std::vector<std::string> place = Components(group);
  const auto [at, next] = std::ranges::mismatch(top, place);
  fs::path folder = root / fs::path(mount.point).relative_path();
  std::vector<fs::path> folders = {folder};
  // What is mounted lies above the namespace: an ancestor, from which nobody here knows the way.
  if (at != top.end()) return std::all_of(at, top.end(), is_up) ? folders : std::vector<fs::path>{};
  // The process lies beside what is mounted, not in it.
  if (std::any_of(next, place.end(), is_up)) return {};
  for (auto component = next; component != place.end(); ++component) {
    folder /= *component;
    folders.push_back(folder);
  }
  return folders;
}

template <typename T>
void Lower(std::optional<T>* least, T value) {
  if (!least->has_value() || value < **least) *least = value;
}

class LimitsReader {
 public:
  explicit LimitsReader(int affinity) { limits_.affinity = std::max(affinity, 1); }

  ProcessLimits Read(const fs::path& root) && {
    if (const auto kib = NumberOf(Lines(ReadFile(root / "proc/meminfo")), "MemAvailable:")) {
      limits_.available_memory = *kib * 1024;
    }
    std::vector<Mount> mounts;
    for (const std::string& line : Lines(ReadFile(root / "proc/self/mountinfo"))) {
      if (std::optional<Mount> mount = ParseMount(line)) mounts.push_back(*std::move(mount));
    }
    for (const std::string& line : Lines(ReadFile(root / "proc/self/cgroup"))) {
      const std::optional<Membership> membership = ParseMembership(line);
      if (!membership.has_value()) continue;
      for (const Mount& mount : mounts) {
        if (!IsOf(*membership, mount)) continue;
        for (const fs::path& folder : Folders(root, mount, membership->group)) {
          mount.is_v2 ? ReadVersion2(folder) : ReadVersion1(folder);
        }
      }
    }
    return std::move(limits_);
  }

 private:
  void ReadVersion2(const fs::path& folder) {
    const fs::path cpu_max = folder / "cpu.max";
    if (const std::optional<std::string> text = ReadFile(cpu_max)) {
      const std::pair<std::string, std::string> words =
          absl::StrSplit(*text, absl::MaxSplits(' ', 1));
      if (words.first != "max") ApplyQuota(cpu_max, *text, words.first, words.second);
    }
    std::optional<int64_t> limit;
    for (const char* name : {"memory.max", "memory.high"}) {
      if (const auto bytes = ReadBytes(folder / name)) Lower(&limit, *bytes);
    }
    ApplyMemory(limit, folder / "memory.current", folder / "memory.stat", "");
  }

  void ReadVersion1(const fs::path& folder) {
    const fs::path quota = folder / "cpu.cfs_quota_us";
    if (const std::optional<std::string> text = ReadFile(quota);
        text.has_value() && *text != "-1") {
      ApplyQuota(quota, *text, *text, ReadFile(folder / "cpu.cfs_period_us").value_or(""));
    }
    ApplyMemory(ReadBytes(folder / "memory.limit_in_bytes"), folder / "memory.usage_in_bytes",
                folder / "memory.stat", "total_");
  }

  void ApplyQuota(const fs::path& path, const std::string& text, const std::string& quota,
                  const std::string& period) {
    int64_t microseconds = 0, of_microseconds = 0;
    if (absl::SimpleAtoi(quota, &microseconds) && absl::SimpleAtoi(period, &of_microseconds) &&
        microseconds > 0 && of_microseconds > 0) {
      Lower(&limits_.cpu_quota,
            static_cast<double>(microseconds) / static_cast<double>(of_microseconds));
    } else {
      NotUnderstood(path, text, "no quota and period in microseconds");
    }
  }

  // nullopt: no limit.
  std::optional<int64_t> ReadBytes(const fs::path& path) {
    // Version 1 says "no limit" by the largest number of whole pages.
    constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max() / 2;
    const std::optional<std::string> text = ReadFile(path);
    if (!text.has_value() || *text == "max") return std::nullopt;
    int64_t bytes = 0;
    if (absl::SimpleAtoi(*text, &bytes) && bytes >= 0) {
      return bytes < kUnlimited ? std::optional(bytes) : std::nullopt;
    }
    NotUnderstood(path, *text, "no number of bytes");
    return std::nullopt;
  }

  void ApplyMemory(std::optional<int64_t> limit, const fs::path& usage, const fs::path& statistics,
                   const std::string& prefix) {
    if (!limit.has_value()) return;
    Lower(&limits_.memory_limit, *limit);
    const int64_t used = ReadBytes(usage).value_or(0);
    const std::vector<std::string> lines = Lines(ReadFile(statistics));
    int64_t file_pages = 0;
    for (const char* key : {"active_file", "inactive_file"}) {
      file_pages += NumberOf(lines, prefix + key).value_or(0);
    }
    const int64_t kept = std::max<int64_t>(used - file_pages, 0);
    Lower(&limits_.available_memory, std::max<int64_t>(*limit - kept, 0));
  }

  void NotUnderstood(const fs::path& path, const std::string& text, const char* what) {
    limits_.not_understood.push_back(absl::StrCat(path.string(), ": '", text, "' is ", what));
  }

  ProcessLimits limits_;
};

int Affinity() {
  // The kernel refuses a set that is smaller than its own, whose size it does not report.
  constexpr int kMostProcessors = 1 << 20;
  for (int processors = 1024; processors <= kMostProcessors; processors *= 2) {
    std::vector<cpu_set_t> set(CPU_ALLOC_SIZE(processors) / sizeof(cpu_set_t));
    const size_t bytes = set.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, set.data()) == 0) return CPU_COUNT_S(bytes, set.data());
    if (errno != EINVAL) break;
  }
  return 1;
}

std::string MiB(std::optional<int64_t> bytes, const char* otherwise) {
  return bytes.has_value() ? absl::StrCat(*bytes >> 20, "MiB") : otherwise;
}

}  // namespace

int ProcessLimits::Processors() const {
  if (!cpu_quota.has_value() || *cpu_quota >= affinity) return affinity;
  return std::max(static_cast<int>(*cpu_quota), 1);
}

ProcessLimits ReadProcessLimits() { return ReadProcessLimits("/", Affinity()); }

ProcessLimits ReadProcessLimits(const fs::path& root, int affinity) {
  return LimitsReader(affinity).Read(root);
}

std::string Summary(const ProcessLimits& limits) {
  return absl::StrCat(
      "processors=", limits.Processors(), " affinity=", limits.affinity,
      " cpu_quota=", limits.cpu_quota.has_value() ? absl::StrCat(*limits.cpu_quota) : "none",
      " memory_available=", MiB(limits.available_memory, "unknown"),
      " memory_limit=", MiB(limits.memory_limit, "none"));
}

}  // namespace ddl
