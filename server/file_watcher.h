#ifndef DDL_SERVER_FILE_WATCHER_H_
#define DDL_SERVER_FILE_WATCHER_H_

#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/engine/mutex.h"

namespace ddl {

// Notices that a small file has other content than before, on a thread of its own. It compares what
// the file holds, not its times: Kubernetes swaps a link when a secret changes, and tools keep
// times.
class FileWatcher {
 public:
  // Calls `on_change`, on the watching thread, whenever `path` is found changed since the last
  // look; the first look is now. While it cannot be read it counts as unchanged.
  FileWatcher(std::string path, absl::Duration interval, std::function<void()> on_change);
  // No call is running or comes after this.
  ~FileWatcher();

  FileWatcher(const FileWatcher&) = delete;
  FileWatcher& operator=(const FileWatcher&) = delete;

 private:
  void Watch();

  const std::string path_;
  const absl::Duration interval_;
  const std::function<void()> on_change_;
  std::string content_;  // the watching thread, once it runs

  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace ddl

#endif  // DDL_SERVER_FILE_WATCHER_H_
