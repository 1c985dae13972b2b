#!/usr/bin/env bash
# Puts what a machine with a GPU needs for scripts/gpu_check.sh into one archive: the device tests and benchmarks, built here,
# their libraries but for LibTorch's and CUDA's, and their data. There it takes a driver, Python 3 with numpy, and torch of the
# version that this is built against; no compiler, no network.
#   scripts/gpu_bundle.sh [ARCHIVE]       (build/gpu-bundle.tar.xz; ARCHITECTURES="80;90" builds for more than 90)
set -euo pipefail
cd "$(dirname "$0")/.."

archive=${1:-build/gpu-bundle.tar.xz}
build=build/gpu-bundle
programs=(tests/cuda_{kernels,runtime,attention,steps,model_runner}_device_test bin/cuda_kernels_benchmark bin/engine_benchmark)
readonly most_bytes=$((40 << 20))

mkdir -p "$build"
cmake --preset cuda -B "$build" -D DDL_BUILD_SERVER=OFF -D "DDL_CUDA_ARCHITECTURES=${ARCHITECTURES:-90}" >"$build/configure.log" 2>&1 ||
  { cat "$build/configure.log" >&2; exit 1; }
cmake --build "$build" --parallel "${JOBS:-$(nproc)}" --target "${programs[@]##*/}"

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
folder=$stage/gpu-bundle
mkdir -p "$folder"/{bin,lib,tests/data,tools,bench}
for program in "${programs[@]}"; do
  strip -o "$folder/bin/${program##*/}" "$build/$program"
done
# The machine has its own of what every Linux has, and torch has the rest.
for program in "${programs[@]}"; do ldd "$build/$program"; done |
  awk '$2 == "=>" && $3 ~ "^/(usr/)?lib/" && $1 !~ /^(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+)\.so/ { print $3 }' |
  sort -u | xargs cp --dereference --target-directory "$folder/lib"
cp -r tests/data/goldens* "$folder/tests/data/"
cp tools/make_random_checkpoint.py tools/ddl_config.py tools/safetensors_writer.py "$folder/tools/"
cp bench/plots.py bench/gpu_predictions.json "$folder/bench/"
cp scripts/gpu_check.sh "$folder/"
git describe --always --dirty --abbrev=12 >"$folder/REVISION"
libtorch=$(sed -n 's/^DDL_LIBTORCH_ROOT:[^=]*=//p' "$build/CMakeCache.txt")
for info in "$libtorch"/torch-*.dist-info; do
  version=${info##*/torch-} && version=${version%.dist-info} && echo "${version%%+*}" >"$folder/TORCH"
done
# What is missing shows here, not where the GPU is: every test reads its data to be listed, the script its modules.
libraries=$folder/lib:$(find "$libtorch" -path '*/lib/*.so*' -printf '%h\n' | sort -u | tr '\n' ':')
for program in "${programs[@]}"; do
  [[ $program != tests/* ]] || (cd "$folder" && LD_LIBRARY_PATH=$libraries "bin/${program##*/}" --gtest_list_tests >/dev/null)
done
.venv/bin/python -B "$folder/tools/make_random_checkpoint.py" --help >/dev/null
tar --create --xz --file "$archive" --directory "$stage" gpu-bundle
bytes=$(stat --format %s "$archive")
((bytes <= most_bytes)) || { echo "gpu-bundle: $archive has $bytes bytes, more than $most_bytes" >&2; exit 1; }
echo "gpu-bundle: $archive, $((bytes / 1000)) KB. Where a GPU is: tar xf ${archive##*/} && gpu-bundle/gpu_check.sh"
