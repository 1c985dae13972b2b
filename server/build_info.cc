#include "server/build_info.h"

#include <grpcpp/grpcpp.h>

namespace ddl {

BuildInfo GetBuildInfo() {
  return {
      .version = DDL_VERSION,
      .git_commit = DDL_GIT_COMMIT,
      .libtorch_version = DDL_LIBTORCH_VERSION,
      .cuda_version = "",
      .grpc_version = grpc::Version(),
  };
}

}  // namespace ddl
