#!/bin/sh
# Keeps the archives for the next build and takes them out of the tree.
# Environment: LAB_DEBS, the folder of archives.
set -eu
find "$1/var/cache/apt/archives" -name '*.deb' -exec mv -n -t "$LAB_DEBS" {} +
find "$1/var/cache/apt/archives" -name '*.deb' -delete
