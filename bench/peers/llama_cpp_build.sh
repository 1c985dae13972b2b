#!/usr/bin/env bash
# Builds llama.cpp into a folder, from the source that the PyPI package llama-cpp-python carries, with a virtual environment
# that writes its models. Needs a C++ compiler, cmake, ninja and Python; takes about 6 minutes on 2 cores, once.
#
#   bench/peers/llama_cpp_build.sh DIR        then: bench/peers/llama_cpp_peer.py --work DIR
set -euo pipefail
[ $# = 1 ] || { echo "usage: llama_cpp_build.sh DIR" >&2; exit 2; }
readonly package=llama-cpp-python==0.3.36 gguf=gguf==0.19.0
mkdir -p "$1"
cd "$1"

[ -x venv/bin/pip ] || python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "$gguf" numpy
if [ ! -f llama.cpp/CMakeLists.txt ]; then
  rm -rf sdist llama.cpp
  venv/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python --dest sdist "$package"
  mkdir llama.cpp
  tar --extract --gzip --file sdist/llama_cpp_python-*.tar.gz --directory llama.cpp --strip-components=3 \
    --wildcards '*/vendor/llama.cpp/*'
fi
cmake -S llama.cpp -B llama.cpp/build -G Ninja -D CMAKE_BUILD_TYPE=Release -D GGML_NATIVE=ON -D LLAMA_CURL=OFF \
  -D LLAMA_BUILD_TESTS=OFF -D LLAMA_BUILD_EXAMPLES=OFF -D LLAMA_BUILD_UI=OFF >/dev/null
cmake --build llama.cpp/build --target llama-batched-bench
