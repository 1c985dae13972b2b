#ifndef DDL_BASE_MAPPED_FILE_H_
#define DDL_BASE_MAPPED_FILE_H_

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"

namespace ddl {

// A regular file mapped read-only, as long as this object lives. Moving it keeps the bytes where
// they are. Any thread may read.
//
// Nobody may shorten the file meanwhile: reading a page that is gone raises SIGBUS, which ends
// the process. Replace a file in use by renaming a new one over it; the mapping keeps the old.
class MappedFile {
 public:
  // The message names the file. An empty file is legal and has no bytes.
  static absl::StatusOr<MappedFile> Open(const std::filesystem::path& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }
  std::string_view text() const {
    return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()};
  }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::span<const std::byte> bytes_;
};

}  // namespace ddl

#endif  // DDL_BASE_MAPPED_FILE_H_
