"""Who uses a disk of this host, so that it is neither written over nor taken away under anybody's feet."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# These look at every disk for a moment.
_PASSING = frozenset({"systemd-udevd", "(udev-worker)"})
_STACKED = "a file system, swap, a volume group or multipath"


def user_of(device: str, processes: Path = Path("/proc"), blocks: Path = Path("/sys/dev/block")) -> str:
    """Returns what uses a disk or a part of it; empty if nothing does, or if there is no such disk.

    Whoever mounts a disk, or stacks a volume on it, has it for himself, so that nobody else can open it so (open(2),
    O_EXCL). A guest only has it open.

    Args:
        device: path of the disk, which may be a link.
        processes: where processes are.
        blocks: where the kernel tells of disks, by their numbers.
    """
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError:
        return ""
    except OSError as error:
        # Anything else is said by a disk that is dead, after the kernel has seen that nobody has it for himself.
        if error.errno == errno.EBUSY:
            return _STACKED
    path, numbers = os.path.realpath(device), _numbers(device, blocks)
    for link in processes.glob("[0-9]*/fd/*"):
        try:
            opened = str(link.readlink())
            # A guest's own /dev may call it otherwise. Nothing else is asked: its server may be dead.
            if opened == path or (opened.startswith("/dev/") and _number(link.stat()) in numbers):
                program = (link.parents[1] / "comm").read_text(encoding="utf-8", errors="replace").strip()
                if program not in _PASSING:
                    return f"process {link.parts[-3]} ({program})"
        except OSError:
            # It has ended meanwhile.
            continue
    return ""


def _number(status: os.stat_result) -> str:
    """Returns the number of a disk, empty for anything else."""
    if not stat.S_ISBLK(status.st_mode):
        return ""
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _numbers(device: str, blocks: Path) -> set[str]:
    """Returns the numbers of a disk and of its partitions."""
    whole = _number(os.stat(device))  # noqa: PTH116 - as the other call
    if not whole:
        return set()
    return {whole, *(path.read_text(encoding="ascii").strip() for path in (blocks / whole).glob("*/dev"))}
