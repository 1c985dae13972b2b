#!/usr/bin/env bash
# Runs the tests of a build: scripts/run_tests.sh PRESET [ctest option...]. Without options: all but the long ones.
# Ends with the list of the tests that skipped themselves.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:?which preset?}
shift
[ $# -gt 0 ] || set -- --label-exclude '^long$'

results=build/$preset/test-results
rm -rf "$results"
mkdir -p "$results"
status=0
ctest --test-dir "build/$preset" --output-on-failure --no-tests=error --parallel 2 "$@" || status=$?
.venv/bin/python scripts/report_skipped.py "$results"
exit "$status"
