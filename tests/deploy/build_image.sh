#!/usr/bin/env bash
# Builds the Dockerfile where there is no Docker engine: with buildah, without a daemon, in a change-root.
#
#   tests/deploy/build_image.sh IMAGE [buildah build option...]
#
# Needs root, buildah and debootstrap (Debian packages). There need be no image registry either: the base image is made once,
# by debootstrap, from where this machine's own apt gets its packages, and gets this machine's apt and pip settings and CA
# certificates. It is kept under the name that the Dockerfile asks for. Images of this script are for tests on this machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly image=${1:?which image name?}
shift
readonly base=docker.io/library/debian:bookworm-slim
export BUILDAH_ISOLATION=chroot
# Overlays save copying, but do not work everywhere, for instance not inside a container.
buildah info >/dev/null 2>&1 || export STORAGE_DRIVER=vfs

# The first archive that apt uses.
debian_archive() {
  # shellcheck disable=SC2016  # $(SITE) is apt-get's
  apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1
}

make_base_image() {
  local root container file
  root=$(mktemp -d)
  trap 'rm -rf "$root"' RETURN
  debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$(debian_archive)" >"$root.log" ||
    { tail -n 20 "$root.log" >&2; return 1; }
  rm -f "$root.log"
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  cp -r /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
  for file in /etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf"; do
    [ ! -f "$file" ] || cp "$file" "$root/etc/pip.conf"
  done
  # As the real slim image: no documentation, no translations.
  rm -rf "$root"/usr/share/{doc,man,info,locale,lintian}/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
    "$root"/var/lib/apt/lists/*
  printf 'path-exclude /usr/share/%s/*\n' doc man info locale lintian >"$root/etc/dpkg/dpkg.cfg.d/slim"
  container=$(buildah from scratch)
  buildah copy -q "$container" "$root" / >/dev/null
  buildah config --cmd bash "$container"
  buildah commit -q --rm "$container" "$base" >/dev/null
}

buildah inspect --type image "$base" >/dev/null 2>&1 || make_base_image

# Settings of this machine's network that are in no file.
settings=()
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_CERT PIP_INDEX_URL PIP_DEFAULT_TIMEOUT; do
  [ -z "${!name:-}" ] || settings+=(--env "$name=${!name}" --unsetenv "$name")
done

# --format docker keeps HEALTHCHECK, which OCI's format does not know.
buildah build --format docker --pull-never --layers "${settings[@]}" --tag "$image" "$@" .
