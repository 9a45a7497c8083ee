"""The host itself: commands, connections, the clock, and files that are on disk when a function returns.

Everything that changes something goes through a method of :class:`LocalHost`, so that a test can end the process at
any of them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from hypervisor_network.backends.contract import Done, Json

# Beside a file while a change is under way: the new content, and the old one for the way back.
NEW = ".hypervisor-new"
OLD = ".hypervisor-old"


def sync(path: Path) -> None:
    """Waits until what a file holds, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalHost:
    """The machine that this runs on.

    Args:
        root: what stands for "/".
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Returns where an absolute path of the host is."""
        return self.root / name.lstrip("/")

    def run(self, argv: Sequence[str], timeout: float = 30.0, stdin: str | None = None) -> Done:
        """Runs a command without a shell; 124 as code when it took too long, 127 when there is none."""
        try:
            done = subprocess.run(
                list(argv),
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            return Done(124, "", f"{argv[0]} did not end within {timeout:.0f} s")
        except OSError as error:
            return Done(127, "", f"{argv[0]}: {error.strerror}")
        return Done(done.returncode, done.stdout, done.stderr)

    def ip(self, *words: str) -> Json:
        """Returns what `ip -j WORDS` prints; an empty list when it fails."""
        done = self.run(["ip", "-j", *words])
        try:
            found = json.loads(done.out) if done.code == 0 and done.out.strip() else []
        except ValueError:
            return []
        # iproute2 prints empty mappings for what a filter has left out.
        return [one for one in found if one]

    def connects(self, address: str, port: int, timeout: float) -> bool:
        """Says whether a TCP connection comes about within some seconds."""
        try:
            with socket.create_connection((address, port), timeout=timeout):
                return True
        except OSError:
            return False

    def now(self) -> float:
        """Returns seconds of a clock that nobody sets."""
        return time.monotonic()

    def date(self) -> float:
        """Returns seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)

    def free(self, name: str) -> int:
        """Returns how many bytes are free in the file system of a path, or of its nearest folder."""
        path = self.path(name)
        while not path.exists():
            path = path.parent
        return shutil.disk_usage(path).free

    def write(self, name: str, content: bytes, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
        """Writes a file so that it is on disk, whole, or not there at all.

        Args:
            name: its absolute path; folders that are missing are made.
            content: what it holds.
            mode: its permissions.
            owner: user and group by number; None is whoever runs this.
        """
        target = self.path(name)
        self._folder(target.parent)
        staged = target.with_name(f".{target.name}.tmp")
        staged.unlink(missing_ok=True)
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                if owner is not None and os.geteuid() == 0:
                    os.fchown(descriptor, *owner)
                os.fchmod(descriptor, mode)
                handle.write(content)
                handle.flush()
                os.fsync(descriptor)
            staged.replace(target)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
        sync(target.parent)

    def flush(self, name: str) -> None:
        """Waits until a file, or a folder with all that is in it, is on disk with the folders above it.

        What is not there is left out. What a symbolic link names is another file; the link itself is in its folder.

        Raises:
            OSError: the disk is broken, or something cannot be read.
        """
        path = self.path(name)
        within = path.rglob("*") if path.is_dir() else ()
        above = (one for one in path.parents if one == self.root or self.root in one.parents)
        for one in (*within, path, *above):
            if one.exists() and not one.is_symlink():
                sync(one)

    def link(self, name: str, target: str) -> None:
        """Makes a symbolic link, in place of whatever has that name."""
        path = self.path(name)
        self._folder(path.parent)
        staged = path.with_name(f".{path.name}.tmp")
        staged.unlink(missing_ok=True)
        staged.symlink_to(target)
        staged.replace(path)
        sync(path.parent)

    def move(self, name: str, target: str) -> None:
        """Renames a file over another in the same folder."""
        self.path(name).replace(self.path(target))
        sync(self.path(target).parent)

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        path = self.path(name)
        if path.is_symlink() or path.exists():
            path.unlink()
            sync(path.parent)

    def remove_tree(self, name: str) -> None:
        """Removes a folder with all that is in it, if it is there."""
        path = self.path(name)
        if path.exists():
            shutil.rmtree(path)
            sync(path.parent)

    def _folder(self, path: Path) -> None:
        """Makes a folder and those above it, on disk."""
        if path.is_dir():
            return
        self._folder(path.parent)
        path.mkdir(mode=0o755, exist_ok=True)
        sync(path.parent)
