#!/usr/bin/env bash
# Configures and builds: scripts/build.sh PRESET [target...]. JOBS says how many compilers run at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:?which preset?}
shift

# A file that includes LibTorch takes the compiler up to 2 GB.
memory_gb=$(awk '/MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)
by_memory=$((memory_gb / 2 > 0 ? memory_gb / 2 : 1))
processors=$(nproc)
jobs=${JOBS:-$((processors < by_memory ? processors : by_memory))}

mkdir -p "build/$preset"
log=build/$preset/configure.log
cmake --preset "$preset" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
cmake --build "build/$preset" --parallel "$jobs" ${1:+--target "$@"}
