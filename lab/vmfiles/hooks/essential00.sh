#!/bin/sh
# What packages must know before they are installed.
# Environment: LAB_INITRAMFS_MODULES, the modules that the initramfs has.
set -eu
# There is no disk to put GRUB on yet, and the package would fail for want of one.
echo "grub-pc grub-pc/install_devices_empty boolean true" | chroot "$1" debconf-set-selections
# A list instead of all that might be needed makes the initramfs a fifth of the size.
mkdir -p "$1/etc/initramfs-tools/conf.d"
printf '%s\n' MODULES=list COMPRESS=zstd COMPRESSLEVEL=3 >"$1/etc/initramfs-tools/conf.d/lab"
# shellcheck disable=SC2086 # names in one word, to be one on each line
printf '%s\n' $LAB_INITRAMFS_MODULES >"$1/etc/initramfs-tools/modules"
