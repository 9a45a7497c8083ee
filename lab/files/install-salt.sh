#!/bin/bash
# Installs Salt into the tree given as first argument, by the repository's own bootstrap. Needs apt's lists in
# the tree (a compiler comes and goes) and a network.
# The virtual environment is kept for the next tree of the same release and the same locked versions.
# Environment: LAB_CHECKOUT, LAB_DEBS (the release's folder of the cache), LAB_PIP_INDEX (may be empty).
set -euo pipefail
tree=$1

# The machine's environment stays out (paths of certificates, pip's settings), but for a proxy.
clean=(env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
  DEBIAN_FRONTEND=noninteractive)
for variable in http_proxy https_proxy no_proxy; do [ -z "${!variable:-}" ] || clean+=("$variable=${!variable}"); done
in_tree() { chroot "$tree" "${clean[@]}" "$@"; }

# Salt. The machine may reach the package index through a certificate authority of its own.
mkdir -p "$tree/tmp/formula/requirements"
cp "$LAB_CHECKOUT/bootstrap" "$tree/tmp/formula/"
cp "$LAB_CHECKOUT/requirements/salt.lock" "$tree/tmp/formula/requirements/"
cp /etc/ssl/certs/ca-certificates.crt "$tree/tmp/ca.crt"
kept=$LAB_DEBS/salt-$(sha256sum <"$LAB_CHECKOUT/requirements/salt.lock" | cut -c1-16).tar
if [ -f "$kept" ]; then tar -x -C "$tree" -f "$kept"; fi
in_tree env PIP_CERT=/tmp/ca.crt PIP_NO_CACHE_DIR=1 PIP_DEFAULT_TIMEOUT=120 ${LAB_PIP_INDEX:+PIP_INDEX_URL="$LAB_PIP_INDEX"} \
  /tmp/formula/bootstrap install --salt pypi
rm -rf "$tree/tmp/formula" "$tree/tmp/ca.crt" "$tree/root/.cache"
if [ ! -f "$kept" ]; then
  partial=$(mktemp "$kept.XXXXXX")
  tar -c -C "$tree" -f "$partial" opt/saltstack
  mv "$partial" "$kept"
fi
