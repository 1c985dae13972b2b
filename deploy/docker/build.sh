#!/usr/bin/env bash
# In a stage of the Dockerfile: compiles the server and installs it under /opt/ddl, with the layout of cmake/Installation.cmake.
#
#   deploy/docker/build.sh PRESET REVISION
set -euo pipefail
readonly preset=${1:?which preset?} revision=${2:?which commit?}  # there is no git here: it is told

# A change of the source compiles what has changed: what was compiled before is kept beside the images. It is compared with its
# locale too, and this one is that of developers' machines, whose caches then fit.
export CCACHE_DIR=/ccache LANG=C.UTF-8
cmake --preset "$preset" -D DDL_BUILD_TESTS=OFF -D DDL_GIT_COMMIT="$revision" >/dev/null
scripts/build.sh "$preset" ddl_server
cmake --install "build/$preset" --prefix /opt/ddl --strip

# A fifth of LibTorch's largest library is symbols that only a debugger would read. Most of NVIDIA's have none, and are left as
# they came.
for library in /opt/ddl/lib/*.so*; do
  if readelf --sections "$library" | grep '\.symtab' >/dev/null; then strip --strip-unneeded "$library"; fi
done
