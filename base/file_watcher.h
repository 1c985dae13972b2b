#ifndef DDL_BASE_FILE_WATCHER_H_
#define DDL_BASE_FILE_WATCHER_H_

#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace ddl {

// The whole content of a small file. NOT_FOUND when it cannot be read.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// Notices that a small file has other content than before, on a thread of its own. It compares what
// the file holds, not its times: Kubernetes swaps a link when a secret changes, and tools keep
// times.
class FileWatcher {
 public:
  // Calls `on_change`, on the watching thread, with what `path` holds whenever that is something
  // else than at the last look; `seen` is what it held when the caller looked. While it cannot be
  // read it counts as unchanged.
  FileWatcher(std::string path, std::string seen, absl::Duration interval,
              std::function<void(const std::string& content)> on_change);
  // No call is running or comes after this.
  ~FileWatcher();

  FileWatcher(const FileWatcher&) = delete;
  FileWatcher& operator=(const FileWatcher&) = delete;

 private:
  void Watch();

  const std::string path_;
  const absl::Duration interval_;
  const std::function<void(const std::string& content)> on_change_;
  std::string seen_;  // the watching thread, once it runs

  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace ddl

#endif  // DDL_BASE_FILE_WATCHER_H_
