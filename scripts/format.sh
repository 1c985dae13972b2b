#!/usr/bin/env bash
# Formats every tracked C++ file; with --check only says which ones are not formatted, and fails.
set -euo pipefail
cd "$(dirname "$0")/.."
options=(-i)
[ "${1:-}" != --check ] || options=(--dry-run --Werror)
git ls-files -z -- '*.cc' '*.h' '*.cu' '*.cuh' | xargs -0 -r .venv/bin/clang-format "${options[@]}"
