#!/bin/sh
# Puts the archives that earlier builds fetched where apt looks for them.
# Environment: LAB_DEBS, the folder of archives.
set -eu
mkdir -p "$1/var/cache/apt/archives/partial"
find "$LAB_DEBS" -maxdepth 1 -name '*.deb' -exec cp -t "$1/var/cache/apt/archives" {} +
