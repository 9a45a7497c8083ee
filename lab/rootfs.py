"""Building Debian trees for container hosts: Salt inside, the formulas' packages at hand, no identity."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .proc import CommandError, LabError, run
from .state import CACHE, CHECKOUT, tree_digest
from .vmdisk import contained

# What every host has before any formula runs; a hypervisor's packages come by highstate.
BASE = (
    "systemd", "systemd-sysv", "dbus", "udev", "openssh-server", "python3", "python3-venv", "iproute2",
    "iputils-ping", "ca-certificates", "procps", "kmod", "netbase", "openssl", "less",
)  # fmt: skip
# What touches the machine's kernel, waits for hardware, or would give the machine's consoles a login.
CONTAINER_MASK = (
    "systemd-sysctl.service", "systemd-modules-load.service", "systemd-udevd.service",
    "systemd-udevd-kernel.socket", "systemd-udevd-control.socket", "systemd-udev-trigger.service",
    "systemd-random-seed.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
    "kmod-static-nodes.service", "systemd-hwdb-update.service", "getty.target", "console-getty.service",
    "systemd-logind.service", "dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "systemd-networkd.service",
)  # fmt: skip
# Nothing may wake up in the middle of a test to look for updates that an offline host can't get.
TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "dpkg-db-backup.timer", "fstrim.timer")
FILES = Path(__file__).resolve().parent / "files"


def digest(release: str, packages: Sequence[str]) -> str:
    """Return 16 hex digits that change with anything that goes into a tree."""
    recipe = hashlib.sha256()
    scripts = [FILES / name for name in ("customize.sh", "install-salt.sh", "lab-init")]
    inputs = [Path(__file__), *scripts, CHECKOUT / "bootstrap", CHECKOUT / "requirements" / "salt.lock"]
    recipe.update(tree_digest(inputs).encode())
    recipe.update("\0".join([release, *sorted(packages)]).encode())
    return recipe.hexdigest()[:16]


def free_space(folder: Path, need_mib: int) -> None:
    """Refuse to begin what can't end for want of disk.

    Raises:
        LabError: the file system of ``folder`` has less than ``need_mib`` MiB free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free // 2**20
    if free < need_mib:
        raise LabError(f"{folder} has {free} MiB free; this step needs {need_mib} MiB: free some, then run it again")


def build(
    release: str,
    target: Path,
    *,
    packages: Sequence[str],
    log: Path,
) -> None:
    """Build a container host's tree as a tar archive.

    Args:
        release: Debian's name of the release, such as ``bookworm``.
        target: the archive to write; it appears whole or not at all.
        packages: what the formulas install; kept as archives in a repository inside.
        log: gets all output.

    Raises:
        LabError: the disk is too full, or mmdebstrap failed (with the end of its log).
    """
    free_space(target.parent, 3000)
    archives = CACHE / "debs" / release
    archives.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PIP_")},
        "LAB_CHECKOUT": str(CHECKOUT),
        "LAB_DEBS": str(archives),
        "LAB_PACKAGES": " ".join(sorted(set(packages))),
        "LAB_MASK": " ".join([*TIMERS, *CONTAINER_MASK]),
        "LAB_PIP_INDEX": os.environ.get("PIP_INDEX_URL", ""),
    }
    argv = [
        "mmdebstrap", "--variant=minbase", "--format=tar", f"--include={','.join(BASE)}",
        "--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Retries \"3\"",
        "--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--skip=essential/unlink", "--skip=cleanup/apt",
        f'--setup-hook=d="$1"/var/cache/apt/archives; mkdir -p "$d"/partial; cp -n {archives}/*.deb "$d" || true',
        f"--customize-hook={FILES / 'customize.sh'}",
        release, str(partial),
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    try:
        # Contained, so that an end of any kind leaves neither mounts nor processes behind.
        run([*contained("--mount-proc"), *argv], timeout=1800, env=environment, log=log)
    except CommandError as error:
        partial.unlink(missing_ok=True)
        raise LabError(f"the {release} tree for container hosts was not built; the log is {log}\n{error}") from None
    partial.replace(target)
