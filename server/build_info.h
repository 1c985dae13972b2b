#ifndef DDL_SERVER_BUILD_INFO_H_
#define DDL_SERVER_BUILD_INFO_H_

#include <string>
#include <string_view>

namespace ddl {

// What this binary was built from. The strings are constants of the build.
struct BuildInfo {
  std::string_view version;           // of this project, "0.1.0"
  std::string_view git_commit;        // "unknown" outside a git checkout, unless given
  std::string_view libtorch_version;  // "2.11.0"
  std::string_view cuda_version;      // empty: built without CUDA
  std::string grpc_version;           // of the library that is loaded
};

BuildInfo GetBuildInfo();

}  // namespace ddl

#endif  // DDL_SERVER_BUILD_INFO_H_
