#include "model/checkpoint/git_lfs.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/convert_command.h"

namespace ddl {

absl::Status CheckNoGitLfsPointer(std::string_view text, const std::filesystem::path& path) {
  if (!text.starts_with("version https://git-lfs.github.com/spec/")) return absl::OkStatus();
  const std::string folder = path.has_parent_path() ? path.parent_path().string() : ".";
  return absl::InvalidArgumentError(
      absl::StrCat(path.string(),
                   " is a Git LFS pointer, not the file itself: the repository was cloned without "
                   "git-lfs. This fetches it:\n  git -C ",
                   ShellWord(folder), " lfs pull"));
}

}  // namespace ddl
