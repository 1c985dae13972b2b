#!/usr/bin/env bash
# Checks what a compiler does not: scripts/lint.sh [--quick]. --quick leaves out clang-tidy, which takes up to a minute a file.
# "Changed" is since LINT_BASE, a commit: by default where this branch left main, or on main itself the commit before.
set -euo pipefail
cd "$(dirname "$0")/.."
quick=
[ "${1:-}" != --quick ] || quick=yes

git rev-parse --git-dir >/dev/null 2>&1 || { echo "lint: this is no git checkout, so nothing says which files are the project's: not checked"; exit 0; }

# The commit to compare with; empty where there is none, as in a clone of depth 1.
find_base() {
  local head branch base
  if [ -n "${LINT_BASE:-}" ]; then
    git rev-parse --verify --quiet "$LINT_BASE^{commit}" || { echo "lint: LINT_BASE=$LINT_BASE is no commit" >&2; return 1; }
    return
  fi
  head=$(git rev-parse HEAD)
  for branch in origin/main main; do
    base=$(git merge-base HEAD "$branch" 2>/dev/null) && [ "$base" != "$head" ] && { echo "$base"; return; }
  done
  git rev-parse --verify --quiet HEAD~1 || true
}
base=$(find_base)

failed=()
check() {  # NAME COMMAND...: goes on after a failure, so that one run shows all that is wrong
  local name=$1
  shift
  printf 'lint: %s\n' "$name"
  "$@" || failed+=("$name")
}

shell_scripts() {
  git ls-files -z -- '*.sh' .ci/run | xargs -0 -r shellcheck --external-sources
}

contract() {  # proto/: the style, and that no client of the commit before is broken
  .venv/bin/buf lint proto || return 1
  [ -n "$base" ] || { echo "  no earlier commit here to compare proto/ with: only its style was checked"; return 0; }
  local before status=0
  before=$(mktemp -d)
  git archive "$base" proto | tar -x -C "$before"
  .venv/bin/buf breaking proto --against "$before/proto" || status=$?
  rm -rf "$before"
  return "$status"
}

clang_tidy() {
  [ -n "$base" ] || { echo "  no earlier commit here: which files have changed is not known"; return 0; }
  local files
  mapfile -t files < <(git diff --name-only --diff-filter=d "$base" -- '*.cc' | grep -v '^tests/model/kernels/cuda/')
  ((${#files[@]})) || { echo "  no .cc has changed since ${base:0:12}"; return 0; }
  # The sources that CMake generates from proto/, and compile_commands.json: of a kernel, which is compiled for each instruction
  # set, the first of its commands.
  scripts/build.sh release ddl_proto >/dev/null || return 1
  mkdir -p build/release/tidy
  .venv/bin/python -c 'import json, sys; json.dump([*{c["file"]: c for c in reversed(json.load(sys.stdin))}.values()], sys.stdout)' \
    <build/release/compile_commands.json >build/release/tidy/compile_commands.json
  printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy -p build/release/tidy --quiet 2> >(grep -v 'warnings\? generated' >&2)
}

check "formatting of C++ (clang-format)" scripts/format.sh --check
check "shell scripts (shellcheck)" shell_scripts
check "Python (ruff)" .venv/bin/ruff check --quiet --output-format concise
check "the contract (buf)" contract
check "prose and links" .venv/bin/python scripts/check_docs.py
[ -n "$quick" ] || check "changed C++ (clang-tidy)" clang_tidy

((!${#failed[@]})) || { printf 'lint: failed: %s\n' "${failed[@]}" >&2; exit 1; }
