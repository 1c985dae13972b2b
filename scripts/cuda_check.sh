#!/usr/bin/env bash
# On a machine with a GPU: the device tests, and the kernels' under compute-sanitizer. Where there is none it says so and fails.
set -euo pipefail
cd "$(dirname "$0")/.."

nvidia-smi --list-gpus 2>/dev/null | grep -q '^GPU' ||
  { echo "cuda-check: needs a GPU, and nvidia-smi finds none on this machine" >&2; exit 1; }
sanitizer=$(command -v compute-sanitizer || true)
[ -n "$sanitizer" ] || { echo "cuda-check: needs compute-sanitizer of the CUDA toolkit in PATH" >&2; exit 1; }

scripts/install_dependencies.sh build cuda
scripts/build.sh cuda cuda_{attention,kernels,model_runner,runtime,steps}_device_test ddl_server
ctest --test-dir build/cuda --output-on-failure --no-tests=error --tests-regex '^cuda_.*_device_test$'
# Every kernel on odd sizes, and in chunks. A sanitizer slows a kernel by up to a hundred times, so the long contexts stay out.
for tool in memcheck racecheck initcheck synccheck; do
  echo "compute-sanitizer --tool $tool"
  "$sanitizer" --tool "$tool" --error-exitcode 1 --print-limit 10 build/cuda/tests/cuda_kernels_device_test \
    --gtest_brief=1 --gtest_filter='*/cuda_*:-*Long*'
done
echo "cuda-check: all passed"
