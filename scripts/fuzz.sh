#!/usr/bin/env bash
# Lets libFuzzer look for inputs that crash a parser, under AddressSanitizer: scripts/fuzz.sh TARGET [SECONDS].
# TARGET is model_config, pytorch_pickle, safetensors, regex or tokenizer_json. Needs Debian's clang. New inputs are kept in
# build/fuzz; one that crashes is printed, and belongs into tests/fuzz/seeds.
set -euo pipefail
cd "$(dirname "$0")/.."
targets="model_config, pytorch_pickle, safetensors, regex or tokenizer_json"
target=${1:?which target? $targets}
seconds=${2:-600}

flags=(-std=c++20 -g -O1 -I. -fsanitize="fuzzer-no-link,address,undefined" -fno-sanitize-recover=undefined -fno-sanitize=vptr)
absl=(absl_strings absl_status absl_statusor absl_cord absl_raw_hash_set absl_hash absl_str_format absl_flat_hash_map)
case $target in
  model_config | pytorch_pickle | safetensors)
    site=$(echo .venv/lib/python3*/site-packages)
    torch=$site/torch
    cuda=$site/nvidia/cu13/lib
    sources=(base/strict_json.cc base/mapped_file.cc model/checkpoint/*.cc)
    flags+=(-idirafter "$torch/include" -idirafter "$torch/include/torch/csrc/api/include")
    libraries=("$torch/lib/libtorch_cpu.so" "$torch/lib/libc10.so" "-Wl,-rpath,$PWD/$torch/lib:$PWD/$cuda"
      "-Wl,-rpath-link,$torch/lib:$cuda" -lcrypto)
    longest=8192
    ;;
  regex | tokenizer_json)
    sources=(base/strict_json.cc model/tokenizer/*.cc)
    mapfile -t libraries < <(pkg-config --libs icu-uc libpcre2-8 | xargs -n 1)
    longest=4096
    ;;
  *)
    echo "fuzz.sh: no target $target: allowed are $targets" >&2
    exit 2
    ;;
esac

# LibTorch's reader of zip files leaks what it had read of one that it refuses.
leaks=1
[ "$target" != pytorch_pickle ] || leaks=0

folder=build/fuzz/$target
mkdir -p "$folder/corpus" "$folder/objects"
objects=()
for source in "tests/fuzz/${target}_fuzzer.cc" "${sources[@]}"; do
  object=$folder/objects/$(basename "$source" .cc).o
  objects+=("$object")
  [ "$object" -nt "$source" ] || clang++ "${flags[@]}" -c "$source" -o "$object"
done
# shellcheck disable=SC2046  # the libraries are words
clang++ -fsanitize=fuzzer,address,undefined -fno-sanitize=vptr "${objects[@]}" -o "$folder/fuzzer" "${libraries[@]}" \
  $(pkg-config --libs "${absl[@]}")
ASAN_OPTIONS=detect_leaks=$leaks "$folder/fuzzer" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 -max_len=$longest -print_final_stats=1 \
  -artifact_prefix="$folder/" "$folder/corpus" "tests/fuzz/seeds/$target"
