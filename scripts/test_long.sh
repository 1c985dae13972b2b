#!/usr/bin/env bash
# The long tests in the release build, then the whole suite but the long tests under AddressSanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/build.sh release
scripts/run_tests.sh release --label-regex '^long$'
scripts/build.sh asan
scripts/run_tests.sh asan --label-exclude '^(long|no-sanitizer)$'
