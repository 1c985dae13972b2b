#ifndef DDL_TESTS_SERVER_ACCESS_KEY_FILE_H_
#define DDL_TESTS_SERVER_ACCESS_KEY_FILE_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace ddl {

// printf %s secret-a | sha256sum, and of secret-b.
inline constexpr char kHashA[] =
    "sha256:8766b9cb08e6040b704f1e3ee1e186efccf2635b1d2634d6525333007e6aeae1";
inline constexpr char kHashB[] =
    "sha256:ff492ef788c89b555e6f738b33d2422f57dbb6656af2402155672c5f123a90af";

// A file of keys, one a test, while it lives.
class KeyFile {
 public:
  explicit KeyFile(const std::string& content)
      : path_(testing::TempDir() + "/keys-" + std::to_string(getpid()) + "-" +
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    Replace(content);
  }
  ~KeyFile() { std::filesystem::remove(path_); }
  KeyFile(const KeyFile&) = delete;
  KeyFile& operator=(const KeyFile&) = delete;

  // As a mounted secret changes: all at once.
  void Replace(const std::string& content) const {
    std::ofstream(path_ + ".new") << content;
    std::filesystem::rename(path_ + ".new", path_);
  }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

}  // namespace ddl

#endif  // DDL_TESTS_SERVER_ACCESS_KEY_FILE_H_
