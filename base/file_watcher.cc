#include "base/file_watcher.h"

#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace ddl {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.is_open() || file.bad()) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return content;
}

FileWatcher::FileWatcher(std::string path, std::string seen, absl::Duration interval,
                         std::function<void(const std::string& content)> on_change)
    : path_(std::move(path)),
      interval_(interval),
      on_change_(std::move(on_change)),
      seen_(std::move(seen)),
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
    absl::StatusOr<std::string> content = ReadFile(path_);
    if (!content.ok() || *content == seen_) continue;
    seen_ = *std::move(content);
    on_change_(seen_);
  }
}

}  // namespace ddl
