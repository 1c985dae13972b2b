#include "server/file_watcher.h"

#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/time/clock.h"

namespace ddl {
namespace {

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.is_open() || file.bad()) return std::nullopt;
  return content;
}

}  // namespace

FileWatcher::FileWatcher(std::string path, absl::Duration interval, std::function<void()> on_change)
    : path_(std::move(path)),
      interval_(interval),
      on_change_(std::move(on_change)),
      content_(ReadFile(path_).value_or("")),
      thread_([this] { Watch(); }) {}

FileWatcher::~FileWatcher() {
  {
    const MutexLock lock(mu_);
    stopping_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

void FileWatcher::Watch() {
  while (true) {
    {
      const MutexLock lock(mu_);
      const absl::Time next = absl::Now() + interval_;
      while (!stopping_ && absl::Now() < next) changed_.WaitUntil(mu_, absl::ToChronoTime(next));
      if (stopping_) return;
    }
    std::optional<std::string> content = ReadFile(path_);
    if (!content.has_value() || *content == content_) continue;
    content_ = *std::move(content);
    on_change_();
  }
}

}  // namespace ddl
