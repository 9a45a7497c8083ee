"""Files of root's that a state owns whole: how they are read, judged and replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read(path: str | Path) -> bytes | None:
    """Returns the content of a file, None if it does not exist."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def write(path: str | Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Replaces a file: written beside its target with its permissions, on disk, then renamed over it, which is too.

    Args:
        path: the file; its folder is made if it is missing.
        content: what it holds.
        mode: its permissions.
        owner: ids of the user and the group that it belongs to; by default whoever runs this, which is root.
    """
    target = Path(path)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.new")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        handle.write(content)
        handle.flush()
        os.fsync(descriptor)
    staged.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def access(path: str | Path, mode: int) -> str:
    """Returns what is wrong with the owner and permissions of a file; empty if nothing, or no file."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return ""
    if status.st_uid != os.geteuid():
        return f"owner {status.st_uid} instead of root"
    found = stat.S_IMODE(status.st_mode)
    return "" if found == mode else f"mode {found:04o} instead of {mode:04o}"


def exposed(path: str | Path) -> bool:
    """Says whether somebody else than root could read a file."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return False
    return status.st_uid != os.geteuid() or bool(status.st_mode & (stat.S_IRGRP | stat.S_IROTH))
