#!/usr/bin/env bash
# Lets libFuzzer look for inputs that crash a parser, under AddressSanitizer: scripts/fuzz.sh TARGET [SECONDS].
# TARGET is model_config, pytorch_pickle or safetensors. Needs Debian's clang. New inputs are kept in build/fuzz; one that
# crashes is printed, and belongs into tests/fuzz/seeds.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?which target? model_config, pytorch_pickle or safetensors}
seconds=${2:-600}

site=$(echo .venv/lib/python3*/site-packages)
torch=$site/torch
cuda=$site/nvidia/cu13/lib
# shellcheck disable=SC2054  # the commas are clang's
flags=(-std=c++20 -g -O1 -I. -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-sanitize=vptr)
case $target in
  model_config | pytorch_pickle | safetensors)
    sources=(base/strict_json.cc base/mapped_file.cc model/checkpoint/*.cc)
    flags+=(-idirafter "$torch/include" -idirafter "$torch/include/torch/csrc/api/include")
    libraries=("$torch/lib/libtorch_cpu.so" "$torch/lib/libc10.so" "-Wl,-rpath,$PWD/$torch/lib:$PWD/$cuda"
      "-Wl,-rpath-link,$torch/lib:$cuda" -lcrypto)
    ;;
  *)
    echo "fuzz.sh: no target $target" >&2
    exit 2
    ;;
esac

folder=build/fuzz/$target
mkdir -p "$folder/corpus" build/fuzz/objects
objects=()
for source in "tests/fuzz/${target}_fuzzer.cc" "${sources[@]}"; do
  object=build/fuzz/objects/$(basename "$source" .cc).o
  objects+=("$object")
  [ "$object" -nt "$source" ] || clang++ "${flags[@]}" -c "$source" -o "$object"
done
# shellcheck disable=SC2046  # the libraries are words
clang++ -fsanitize=fuzzer,address,undefined -fno-sanitize=vptr "${objects[@]}" -o "$folder/fuzzer" "${libraries[@]}" \
  $(pkg-config --libs absl_strings absl_status absl_statusor absl_cord absl_raw_hash_set absl_hash absl_str_format)
"$folder/fuzzer" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 -max_len=8192 -print_final_stats=1 \
  -artifact_prefix="$folder/" "$folder/corpus" "tests/fuzz/seeds/$target"
