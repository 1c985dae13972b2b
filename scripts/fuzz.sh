#!/usr/bin/env bash
# Lets libFuzzer look for inputs that crash a parser, under AddressSanitizer: scripts/fuzz.sh regex|tokenizer_json [SECONDS].
# Needs Debian's clang. New inputs are kept in build/fuzz; one that crashes is printed, and belongs into tests/fuzz/seeds.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:?which target? regex or tokenizer_json}
seconds=${2:-600}

folder=build/fuzz/$target
mkdir -p "$folder/corpus" "$folder/objects"
flags=(-std=c++20 -g -O1 -I. -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined)
objects=()
for source in "tests/fuzz/${target}_fuzzer.cc" base/strict_json.cc model/tokenizer/*.cc; do
  object=$folder/objects/$(basename "$source" .cc).o
  objects+=("$object")
  [ "$object" -nt "$source" ] || clang++ "${flags[@]}" -c "$source" -o "$object"
done
clang++ -fsanitize=fuzzer,address,undefined "${objects[@]}" -o "$folder/fuzzer" \
  $(pkg-config --libs icu-uc libpcre2-8) \
  $(pkg-config --libs absl_strings absl_statusor absl_raw_hash_set absl_hash absl_str_format absl_flat_hash_map)
"$folder/fuzzer" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 -max_len=4096 -print_final_stats=1 \
  -artifact_prefix="$folder/" "$folder/corpus" "tests/fuzz/seeds/$target"
