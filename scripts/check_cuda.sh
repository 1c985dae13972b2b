#!/usr/bin/env bash
# Compiles each CUDA kernel file alone for each architecture and reports what ptxas made of it; fails on a spill.
#   scripts/check_cuda.sh            a line for each file and architecture
#   scripts/check_cuda.sh --write    the same, and puts every kernel's line into the table of docs/cuda.md
# Needs nvcc, no GPU. Without nvcc it says so and passes.
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=${NVCC:-$(command -v nvcc || true)}
if [ -z "$nvcc" ]; then
  echo "check_cuda: no nvcc in PATH (nor in NVCC): the CUDA kernels were not compiled"
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile() {  # SOURCE ARCHITECTURE
  local log
  log=$work/$(basename "$1" .cu).$2
  "$nvcc" -std=c++17 -O3 -arch="$2" -I. -Xptxas -v -c "$1" -o "$log.object" >"$log" 2>&1 || { cat "$log" >&2; return 255; }
}
export -f compile
export nvcc work
for source in model/kernels/cuda/*.cu; do printf "%s %s\n" "$source" sm_80 "$source" sm_89 "$source" sm_90; done |
  xargs --max-procs="$(nproc)" --max-args=2 bash -c 'compile "$@"' bash
rm -f "$work"/*.object

python3 scripts/check_cuda.py "$@" "$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')" "$work"/*.sm_*
