#!/usr/bin/env bash
# The first minutes on a GPU, from programs that were built elsewhere (make gpu-bundle): tests, then figures, the cheapest and most
# telling first, each part within a time of its own, ten minutes in all. What each part prints and measures is in the results
# folder as it comes; a table of the parts ends it. Needs a driver, and Python 3 with torch and numpy; ncu and compute-sanitizer are
# used where they are in PATH.
#   [BUDGET=600] gpu_check.sh [PREBUILT] [RESULTS]      the folder of the unpacked bundle (its own by default), and where results go
# BUDGET: seconds in all. Parts for which nothing is left do not run.
# Exit code 0: every part passed. 1: one failed, or ran out of time. 2: it was called wrongly, or torch is missing. 77: nothing could
# run, there is no GPU.
set -uo pipefail

readonly budget=${BUDGET:-600}
bundle=$(cd "${1:-$(dirname "$0")}" && pwd) || exit 2
results=${2:-$PWD/gpu-results}
[ -x "$bundle/bin/cuda_kernels_device_test" ] ||
  { echo "gpu_check: $bundle is no unpacked bundle: bin/cuda_kernels_device_test is missing (make gpu-bundle makes one)" >&2; exit 2; }
mkdir -p "$results" && results=$(cd "$results" && pwd) || exit 2
cd "$bundle" || exit 2

# LibTorch and CUDA as torch brings them. Asked of Python without importing torch, which takes seconds.
packages=$(python3 -c 'import importlib.util as u, os; print(os.path.dirname(os.path.dirname(u.find_spec("torch").origin)))' 2>/dev/null) ||
  { echo "gpu_check: $(command -v python3 || echo python3) has no torch, whose libraries the programs need" >&2; exit 2; }
built=$(cat TORCH 2>/dev/null)
found=$(python3 -c 'import importlib.metadata as m; print(m.version("torch").split("+")[0])' 2>/dev/null)
[ -z "$built" ] || [ "$built" = "$found" ] ||
  { echo "gpu_check: the programs were built against torch $built, and python3 has ${found:-another}" >&2; exit 2; }
export LD_LIBRARY_PATH=$bundle/lib:$packages/torch/lib:$packages/nvidia/cu13/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
for folder in "$packages"/nvidia/*/lib; do LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$folder; done
export OMP_WAIT_POLICY=passive

set -m  # what is begun here can be ended with all that it began
# Three gigabytes of libraries are read from disk before the first product: meanwhile the kernels' tests run.
cat "$packages"/torch/lib/libtorch_c*.so "$packages"/nvidia/cu13/lib/libcublas*.so* >/dev/null 2>&1 &
shm=$(df --output=avail --block-size=1G /dev/shm 2>/dev/null | tail -n 1)
if ((${shm:-0} >= 4)); then weights=$(mktemp -d -p /dev/shm); else weights=$(mktemp -d); fi
variants="gpt vdim1 cc ccec tc tcec"
for variant in $variants; do
  python3 tools/make_random_checkpoint.py --size small --variant "$variant" --dtype bfloat16 --out "$weights/$variant" || exit 1
done >"$results/checkpoints.log" 2>&1 &
making=$!
set +m
trap 'kill %1 %2 2>/dev/null; wait; rm -rf "$weights"' EXIT
models=$(for variant in $variants; do printf '%s=%s,' "$variant" "$weights/$variant"; done)

(nvidia-smi || echo "no nvidia-smi") >"$results/gpu.log" 2>&1
: >"$results/parts.jsonl"
failed=0 ran=0
readonly grace=5  # seconds, for a program that does not heed its end

# part NAME LIMIT COMMAND...: runs it with the bundle as working directory.
part() {
  local name=$1 limit=$2 log=$results/$1.log start end code verdict line left=$((budget - SECONDS - grace))
  shift 2
  ((limit <= left)) || limit=$((left > 0 ? left : 0))
  printf '== %s (at most %s s)\n' "$name" "$limit"
  start=$(date +%s%3N)
  if ((limit > 0)); then
    timeout --kill-after=$grace "$limit" "$@" >"$log" 2>&1
    code=$?
  else
    echo "nothing is left of the $budget s" >"$log"
    code=124
  fi
  end=$(date +%s%3N)
  case $code in
    0) verdict=passed ;;
    77) verdict="no GPU" ;;
    124 | 137) verdict="out of time" ;;
    *) verdict="failed ($code)" ;;
  esac
  grep -q 'no GPU that CUDA can use' "$log" && verdict="no GPU"
  grep -q '^not there: ' "$log" && verdict="not there"
  line=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1)
  [ "$verdict" != "no GPU" ] || line=$(grep -m 1 -E 'needs a GPU|no GPU that CUDA can use' "$log" || echo "$line")
  line=$(tr '\t' ' ' <<<"$line" | cut -c1-150)
  case $verdict in
    passed) ran=1 ;;
    "no GPU" | "not there") ;;
    *) failed=1 ran=1 ;;
  esac
  printf '   %s in %s ms: %s\n' "$verdict" "$((end - start))" "$line"
  python3 -c 'import json, sys; print(json.dumps(dict(zip(("part", "limit_s", "ms", "code", "verdict", "line"), sys.argv[1:]))))' \
    "$name" "$limit" "$((end - start))" "$code" "$verdict" "$line" >>"$results/parts.jsonl"
}

# What parts call, by way of bash.
# shellcheck disable=SC2317
with() {  # a tool of CUDA, or one line that says that it is not there
  command -v "$1" >/dev/null || { echo "not there: no $1 in PATH"; return 127; }
  "$@"
}
# shellcheck disable=SC2317
made() {  # waits for the checkpoints
  while kill -0 "$making" 2>/dev/null; do sleep 0.2; done
  [ -e "$weights/tcec/model.safetensors" ] || { cat "$results/checkpoints.log"; return 1; }
}
# shellcheck disable=SC2317
engine() { made && bin/engine_benchmark --device=cuda --json="$results/engine.json" --models="${models%,}" "$@"; }
# shellcheck disable=SC2317
profile_kernels() {
  with ncu --set basic --kernel-name regex:"DeltaStepRows|PlainHeads|PlainSplits" --launch-count 30 --export "$results/kernels" \
    --force-overwrite bin/cuda_kernels_benchmark --tokens=16384
}
# shellcheck disable=SC2317
profile_decode() {
  command -v ncu >/dev/null || { with ncu; return; }
  made && with ncu --graph-profiling node --section SpeedOfLight --launch-count 140 --export "$results/decode" --force-overwrite \
    bin/engine_benchmark --device=cuda --models="ccec=$weights/ccec" --prefill=0 --batches=1 --context=512 --steps=4 --rounds=1
}
export -f with made engine profile_kernels profile_decode
export making weights results models

part kernels_test 60 bin/cuda_kernels_device_test --gtest_brief=1
part runtime_test 40 bin/cuda_runtime_device_test --gtest_brief=1
part attention_test 40 bin/cuda_attention_device_test --gtest_brief=1
part steps_test 60 bin/cuda_steps_device_test --gtest_brief=1
# cuBLAS may sum a row's products in an order that the other rows change: values are compared, not bits.
part model_runner_test 80 bin/cuda_model_runner_device_test --gtest_brief=1 \
  --gtest_filter='*Float32*:*StatisticsFollowTheStates*:*ReadoutsFollow*:*BlockSizeChangesNothing*:BFloat16Test*:NonFiniteTest*'
part kernels_benchmark 50 bin/cuda_kernels_benchmark --tokens=1,32,256,16384,65536 --json="$results/kernels.json"
part engine_benchmark 90 bash -c 'engine --batches=1,8,32,256 --context=512 --prefill=512 --steps=16 --rounds=3'
part ncu_kernels 40 bash -c profile_kernels
part ncu_decode 50 bash -c profile_decode
# A sanitizer slows a kernel by up to a hundred times: bfloat16 alone, without the long contexts, and few rows that sample.
for tool in memcheck racecheck; do
  part "$tool" 40 bash -c "with compute-sanitizer --tool $tool --error-exitcode 1 --print-limit 10 \
    bin/cuda_kernels_device_test --gtest_brief=1 --gtest_filter='*TheirRowAlone/cuda:*/cuda_bfloat16:-*Long*:*ManyRows*:*MostSplits*'"
done

[ -s "$results/kernels.json" ] && [ -s "$results/engine.json" ] &&
  python3 bench/plots.py --kernels "$results/kernels.json" --engine small="$results/engine.json" --predictions bench/gpu_predictions.json "$results"

echo
python3 - "$results/parts.jsonl" <<'EOF' | tee "$results/summary.txt"
import json, sys
rows = [("part", "limit s", "took s", "verdict", "last line")]
for part in map(json.loads, open(sys.argv[1])):
    rows.append((part["part"], part["limit_s"], f"{int(part['ms']) / 1000:.1f}", part["verdict"], part["line"]))
widths = [max(len(row[i]) for row in rows) for i in range(4)]
for row in rows:
    print("  ".join([cell.ljust(width) for cell, width in zip(row, widths)] + [row[4]]))
EOF
echo "gpu_check: revision $(cat REVISION 2>/dev/null || echo unknown), results in $results"
((ran)) || exit 77
exit $failed
