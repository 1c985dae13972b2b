#ifndef DDL_MODEL_CHECKPOINT_GIT_LFS_H_
#define DDL_MODEL_CHECKPOINT_GIT_LFS_H_

#include <filesystem>
#include <string_view>

#include "absl/status/status.h"

namespace ddl {

// Refuses what stands for a large file in a Git repository that was cloned without git-lfs. `path`
// is the file that `text` was read from.
absl::Status CheckNoGitLfsPointer(std::string_view text, const std::filesystem::path& path);

}  // namespace ddl

#endif  // DDL_MODEL_CHECKPOINT_GIT_LFS_H_
