#!/bin/bash
# Run by mmdebstrap in the end of a container host's build, on the machine, with the tree as first argument:
# Salt, the formulas' packages as an offline repository, and no identity.
# Environment: LAB_CHECKOUT, LAB_DEBS (cache of archives), LAB_PACKAGES (names to keep at hand offline),
# LAB_MASK (units that have no business in a container), and what install-salt.sh reads.
set -euo pipefail
tree=$1

clean=(env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
  DEBIAN_FRONTEND=noninteractive)
in_tree() { chroot "$tree" "${clean[@]}" "$@"; }

"$LAB_CHECKOUT/lab/files/install-salt.sh" "$tree"

# Archives: what apt would fetch for the packages, from the cache where it is there already.
cp -n "$tree"/var/cache/apt/archives/*.deb "$LAB_DEBS/" 2>/dev/null || true
rm -f "$tree"/var/cache/apt/archives/*.deb
repository=$tree/var/cache/lab-repo
mkdir -p "$repository/partial"
read -ra packages <<<"$LAB_PACKAGES"
fetch=(apt-get -q -y --no-install-recommends -o Dir::Cache::archives=/var/cache/lab-repo/)
in_tree "${fetch[@]}" --print-uris install "${packages[@]}" | awk '/^\047/ { print $2 }' | while read -r archive; do
  if [ -f "$LAB_DEBS/$archive" ]; then cp "$LAB_DEBS/$archive" "$repository/"; fi
done
in_tree "${fetch[@]}" --download-only install "${packages[@]}"
rm -rf "$repository/partial" "$repository/lock"
cp -n "$repository"/*.deb "$LAB_DEBS/"

(cd "$repository" && apt-ftparchive packages . >Packages)
rm -f "$tree"/etc/apt/sources.list "$tree"/etc/apt/sources.list.d/*
# The archives were verified when they were fetched; the index made here has no signature.
echo 'deb [trusted=yes] file:/var/cache/lab-repo ./' >"$tree/etc/apt/sources.list"
rm -rf "$tree"/var/lib/apt/lists/*
in_tree apt-get -q update

read -ra masked <<<"$LAB_MASK"
for unit in "${masked[@]}"; do ln -sf /dev/null "$tree/etc/systemd/system/$unit"; done
cp "$LAB_CHECKOUT/lab/files/lab-init" "$tree/usr/local/sbin/"

# No identity: each host gets its own.
rm -f "$tree"/etc/ssh/ssh_host_* "$tree/etc/hostname" "$tree/var/lib/dbus/machine-id"
rm -rf "$tree/etc/salt/pki" "$tree/var/cache/apt/archives"/*.deb
: >"$tree/etc/machine-id"
